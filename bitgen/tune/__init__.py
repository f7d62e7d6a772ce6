"""Choosing kernels: by racing them here or on a device, or by a cost model."""
