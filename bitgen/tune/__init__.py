"""Choosing kernels: by timing candidates here or on a device, or by a cost model."""
