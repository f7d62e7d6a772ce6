"""Write a checkpoint as a Hugging Face folder in the format of microsoft/bitnet-b1.58-2B-4T.

"offline" (default) stores packed ternary linears, each with its float32 `weight_scale`; "online" stores the
float32 master weights. The embedding is stored as float32, rounded to float16 values as in training, so converting it
to float16 is exact. (From a float16 tensor transformers would keep the head in float16 beside a float32 model.)
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from model import BitNet, Shape, ternary_codes
from safetensors.torch import save_file
from tokenizer import BOS, EOS, EOT
from tokenizers import Tokenizer
from torch import Tensor
from train import load_model


def pack_codes(codes: Tensor) -> Tensor:
    """Codes [N, K] in {-1, 0, 1} -> uint8 [N/4, K]: bits 2i and 2i+1 are code + 1 of row quarter i."""
    quarters = (codes + 1).to(torch.uint8).chunk(4)
    return quarters[0] | quarters[1] << 2 | quarters[2] << 4 | quarters[3] << 6


@torch.no_grad()
def tensors(model: BitNet, mode: str) -> dict[str, Tensor]:
    """The checkpoint's tensors by name."""
    matrices = {id(w) for w in model.matrices()}
    out = {}
    for name, weight in model.named_parameters():
        if id(weight) in matrices and mode == "offline":
            codes, scale = ternary_codes(weight)
            out[name] = pack_codes(codes)
            out[f"{name}_scale"] = (1 / scale).reshape(1)
        elif name == "model.embed_tokens.weight":
            out[name] = weight.half().float()
        else:
            out[name] = weight.detach()
    return out


def config(shape: Shape, mode: str, bos: int, eos: int) -> dict:
    """config.json."""
    out = {
        "architectures": ["BitNetForCausalLM"],
        "model_type": "bitnet",
        "vocab_size": shape.vocab,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "relu2",
        "max_position_embeddings": shape.context,
        "rope_theta": shape.rope_theta,
        "rms_norm_eps": shape.norm_eps,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "bos_token_id": bos,
        "eos_token_id": eos,
        "use_cache": True,
        "torch_dtype": "float32",
    }
    if shape.ternary:
        out["quantization_config"] = {
            "quant_method": "bitnet",
            "linear_class": "autobitlinear",
            "quantization_mode": mode,
            "modules_to_not_convert": ["lm_head"],
        }
    return out


def export(checkpoint: Path, tokenizer_file: Path, out: Path, mode: str) -> None:
    """Write the folder `out`."""
    model, _ = load_model(checkpoint)
    if not model.shape.ternary:
        raise SystemExit("this checkpoint is the full-precision twin: there is nothing ternary to export")
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    bos, eos, eot = map(tokenizer.token_to_id, (BOS, EOS, EOT))
    out.mkdir(parents=True, exist_ok=True)
    contiguous = {name: tensor.contiguous() for name, tensor in tensors(model, mode).items()}
    save_file(contiguous, out / "model.safetensors", metadata={"format": "pt"})
    shutil.copyfile(tokenizer_file, out / "tokenizer.json")
    documents = {
        "config.json": config(model.shape, mode, bos, eos),
        "generation_config.json": {
            "bos_token_id": bos,
            "eos_token_id": [eos, eot],
            "do_sample": True,
            "temperature": 0.7,
            "top_p": 0.9,
            "max_length": model.shape.context,
        },
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": BOS,
            "eos_token": EOS,
            "clean_up_tokenization_spaces": False,
            "model_max_length": model.shape.context,
            "model_input_names": ["input_ids", "attention_mask"],
        },
    }
    for name, document in documents.items():
        (out / name).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, help="best.pt of a run")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--tokenizer", type=Path, required=True, help="tokenizer.json")
    parser.add_argument("--mode", choices=("offline", "online"), default="offline", help="packed or masters")
    args = parser.parse_args()
    export(args.checkpoint, args.tokenizer, args.out, args.mode)
    print(f"{args.out}: {(args.out / 'model.safetensors').stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
