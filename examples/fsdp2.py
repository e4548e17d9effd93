"""PyTorch FSDP2 (`fully_shard`): train sharded, save the whole adapter, calibrate and merge in one process.

torchrun --nproc-per-node 2 examples/fsdp2.py --output runs/fsdp2
"""

from __future__ import annotations

import argparse
from pathlib import Path

import common
import torch
import torch.distributed as dist
from peft import PeftModel, get_peft_model
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard

from aurora_lora import calibrate, merge_gap


def train(args: argparse.Namespace, rank: int, world: int) -> Path:
    """Train on the process's share of each batch; the folder of the adapter."""
    tokenizer, base = common.load_model(args.model)
    torch.manual_seed(0)  # each process makes the same adapter, of which it keeps its shard
    model = get_peft_model(base, common.aurora_config(args))
    if args.gradient_checkpointing != "off":
        kwargs = {"use_reentrant": args.gradient_checkpointing == "reentrant"}
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kwargs)
        model.enable_input_require_grads()
    for layer in base.model.layers:
        fully_shard(layer)
    fully_shard(model)

    # after sharding: the optimiser holds the shards
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=args.learning_rate)
    model.train()
    batches = common.training_batches(args, tokenizer)
    for step, (batch, tokens) in enumerate(common.shares(batches, rank, world), start=1):
        loss = model(**batch, num_items_in_batch=tokens).loss * world  # FSDP takes the mean of the gradients
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        dist.all_reduce(total := loss.detach() / world)
        if rank == 0:
            print(f"step {step}/{args.steps}: loss {total.item():.4f}")

    # every process takes part in gathering; only the first gets the tensors
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
    whole = get_model_state_dict(model, options=options)
    if rank == 0:
        model.save_pretrained(args.output / "adapter", state_dict=whole)
    dist.barrier()
    return args.output / "adapter"


def deploy(args: argparse.Namespace, adapter: Path) -> None:
    """Load the adapter over an unsharded model, calibrate it, look at the gap, merge."""
    tokenizer, base = common.load_model(args.model)
    model = PeftModel.from_pretrained(base, str(adapter))
    batches = common.training_batches(args, tokenizer)
    calibrate(model, batches)
    for form in merge_gap(model, batches[:2]).end_to_end:
        print(f"{form.form}: KL from trained {form.kl:.5f}, nll {form.metric['nll']:.4f}")
    model.save_pretrained(args.output / "calibrated")
    model.merge_and_unload().save_pretrained(args.output / "merged")


def main() -> None:
    parser = common.options(__doc__)
    parser.add_argument("--gradient-checkpointing", choices=["off", "reentrant", "non-reentrant"], default="off")
    args = parser.parse_args()
    rank, world = common.start_processes()
    adapter = train(args, rank, world)
    dist.destroy_process_group()
    if rank == 0:
        deploy(args, adapter)


if __name__ == "__main__":
    main()
