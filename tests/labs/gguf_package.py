"""Files as the `gguf` package writes them: llama.cpp's own writer, so that ours does not vouch for our reader."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
from gguf_files import Stored


def packaged(path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, Stored], **options: Any) -> list[Path]:
    """Write a file, or with split_max_tensors the parts of one; types of bitnet.cpp cannot be written."""
    writer = GGUFWriter(path, metadata["general.architecture"], **options)
    for key, value in metadata.items():
        if key != "general.architecture":
            _add(writer, key, value)
    for name, (shape, type, data) in tensors.items():
        raw = np.frombuffer(data, np.uint8).reshape(*shape[:-1], -1)
        writer.add_tensor(name, raw, raw_dtype=GGMLQuantizationType(type))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(path.parent.glob(f"{path.stem}*.gguf"))


def _add(writer: GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, list | np.ndarray):
        if len(value):
            writer.add_array(key, value.tolist() if isinstance(value, np.ndarray) else value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_uint32(key, int(value))
