"""`xpcap bench`."""

from __future__ import annotations

import click

from xpcap.cli import _options as common
from xpcap.cli._options import NonNegative, choice


@click.command()
@choice("--model", "recurrent|transformer", "Captioner: a recurrent network, or a Transformer.")
@click.option(
    "--config",
    type=click.Choice(["seed", "full", "bigvocab", "grid-512"]),
    help="Model size: small, full-size fc7 features, 10,000 words, or, with a Transformer alone, 49"
    " regions.",
    show_default="seed, or grid-512 for a Transformer",
)
@click.option(
    "--cell",
    type=click.Choice(["lstm", "rnn", "gru"]),
    help="Recurrent cell.",
    show_default="lstm",
)
@choice(
    "--task",
    "train|loss|decode",
    "Time a training step, a loss with its gradients, or greedy decoding.",
)
@common.option("--rounds", 10, "Number of timing rounds.", type=common.Positive)
@click.option(
    "--load",
    type=NonNegative,
    help="Number of processes to keep busy meanwhile; on the CPU, also time fewer threads.",
)
@common.option("--nice", 0, "Niceness of the busy processes.", type=click.IntRange(0, 19))
@common.compute_options
@common.json_option
def bench(
    model: str,
    config: str | None,
    cell: str | None,
    task: str,
    rounds: int,
    load: int | None,
    nice: int,
    device: str,
    as_json: bool,
) -> None:
    """Time xpcap on this machine, and its matrix products alone.

    Captions are generated with COCO's lengths and word frequencies. The products are those of
    NumPy's BLAS with its own threads, or of cuBLAS: on an idle machine a lower bound for any
    program that computes them so. With --load they are none, as BLAS's threads spin while they wait
    for the one that is not running. Ratios are relative to xpcap's time.
    """
    from xpcap.benchmark.contenders import Ours, TransformerProducts, products
    from xpcap.benchmark.machine import busy_processes, by_threads, processor
    from xpcap.benchmark.timing import Result, interleave
    from xpcap.benchmark.workload import CONFIGURATIONS, GRIDS, Workload

    transformer = model == "transformer"
    if transformer and cell:
        raise click.UsageError("--cell goes with --model recurrent alone")
    if config == "grid-512" and not transformer:
        raise click.UsageError("--config grid-512 goes with --model transformer alone")
    config = config or ("grid-512" if transformer else "seed")
    cell = cell or ("transformer" if transformer else "lstm")
    backend = common.open_device(device)
    size = {**CONFIGURATIONS, **GRIDS}[config]
    workload = Workload(size, cell)
    programs = {"xpcap": Ours(workload, backend), "products": products(workload, backend.xp)}
    calls = {name: getattr(program, task) for name, program in programs.items()}
    if load is not None and backend.device is None:
        calls |= by_threads("xpcap", calls["xpcap"])
    with busy_processes(load or 0, nice):
        figures = interleave(calls, rounds, 5, backend.synchronize)
    results = [
        Result(config, cell, task, name, size.batch_size, times, figures["xpcap"])
        for name, times in figures.items()
    ]
    if as_json:
        common.print_json([result.as_dict() for result in results])
        return
    common.print_message(
        f"{config} {cell} {task} on {backend.name}, {size.batch_size} captions per call"
    )
    common.print_message(processor())
    if isinstance(programs["products"], TransformerProducts):
        common.print_message(f"products: {programs['products'].operations / 1e9:.1f} GFLOP")
    for result in results:
        common.print_result(result.line())
