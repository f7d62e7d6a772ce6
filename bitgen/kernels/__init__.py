"""Formats, layouts, tiles and plans; a KernelSpec rendered as C."""
