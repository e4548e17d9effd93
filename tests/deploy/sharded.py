"""One of two processes with a model sharded by FSDP2: run by test_sharded.py. Prints what rank 0 finds."""

import copy
import os
import sys

import torch
import torch.distributed as dist
from peft import get_peft_model
from torch.distributed.fsdp import fully_shard
from transformers import LlamaConfig, LlamaForCausalLM

from aurora_lora import AuroraConfig, calibrate, merge_gap, probe
from aurora_lora.tuner import aurora_layers


def main(rank: int, address: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    torch.manual_seed(0)
    sizes = {"vocab_size": 30, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    base = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4))
    plain = get_peft_model(
        copy.deepcopy(base), AuroraConfig(target_modules=["q_proj", "v_proj"], init_weights=False)
    ).eval()
    sharded = copy.deepcopy(plain)
    for layer in sharded.base_model.model.model.layers:
        fully_shard(layer)
    fully_shard(sharded)
    ids = torch.arange(32).reshape(4, 8) % 30
    mine = [{"input_ids": ids[2 * rank : 2 * rank + 2]}]

    calibrate(plain, mine)
    calibrate(sharded, mine)
    expected, found = dict(aurora_layers(plain)), dict(aurora_layers(sharded))
    for name, layer in found.items():
        torch.testing.assert_close(layer.aurora_A_cal["default"].weight, expected[name].aurora_A_cal["default"].weight)
    print("forms", {layer.form("default") for layer in found.values()})
    with torch.no_grad():
        torch.testing.assert_close(sharded(**mine[0]).logits, plain(**mine[0]).logits)
    for form in ("calibrated", "static"):
        factors = [layer.get_factors("default", form)[0] for layer in found.values()]
        wanted = [layer.get_factors("default", form)[0] for layer in expected.values()]
        torch.testing.assert_close(factors, wanted)
    first, second = merge_gap(sharded, mine), merge_gap(plain, mine)
    for a, b in zip(first.end_to_end, second.end_to_end, strict=True):
        torch.testing.assert_close(a.kl, b.kl, rtol=1e-3, atol=1e-6)
    labelled = [{**batch, "labels": batch["input_ids"]} for batch in mine]
    for a, b in zip(probe(sharded, labelled, rank=2).layers, probe(plain, labelled, rank=2).layers, strict=True):
        assert a.layer == b.layer
        torch.testing.assert_close(a.singular_values, b.singular_values, rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(a.directions[0], b.directions[0], rtol=1e-2, atol=1e-3)
    print("probed")
    whole = get_peft_model(base, AuroraConfig(target_modules=["q_proj"], train_form="static"))
    fully_shard(whole)
    whole(**mine[0])  # its weights stay gathered
    try:
        whole.merge_adapter()
    except NotImplementedError as error:
        print("merge", error)
    sharded.train()
    sharded(**mine[0], labels=mine[0]["input_ids"]).loss.backward()
    print("done")
    dist.barrier()
    dist.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)  # gloo's threads, still there while Python ends, now and then abort the process


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
