"""`xpcap bench`."""

from __future__ import annotations

import click

from xpcap.cli._options import (
    device_option,
    json_option,
    open_device,
    show,
    show_json,
    talk,
    threads_option,
)


@click.command()
@click.option(
    "--config",
    type=click.Choice(["seed", "full", "bigvocab"]),
    default="seed",
    help="Sizes: small, full-size fc7 features, or 10,000 words.",
)
@click.option(
    "--cell", type=click.Choice(["rnn", "lstm", "gru"]), default="lstm", help="Kind of network."
)
@click.option(
    "--task",
    type=click.Choice(["train", "loss", "decode"]),
    default="train",
    help="A whole training step, a loss with its gradients, or greedy decoding.",
)
@click.option("--rounds", type=click.IntRange(1), default=10, help="Turns of each program.")
@click.option(
    "--load",
    type=click.IntRange(min=0),
    help="Keep this many processes busy; on the CPU, also time fewer threads.",
    show_default=False,
)
@click.option(
    "--nice", type=click.IntRange(0, 19), default=0, help="Niceness of the busy processes."
)
@device_option
@threads_option
@json_option
def bench(
    config: str,
    cell: str,
    task: str,
    rounds: int,
    load: int | None,
    nice: int,
    device: str,
    as_json: bool,
) -> None:
    """Time xpcap on this machine, beside its matrix products alone.

    Captions are drawn with COCO's lengths and word frequencies. No program can be faster than its
    products; ratios are to xpcap's own time.
    """
    from xpcap.benchmark import (
        CONFIGURATIONS,
        Ours,
        Products,
        Result,
        Workload,
        busy_processes,
        by_threads,
        interleave,
        processor,
    )

    backend = open_device(device)
    size = CONFIGURATIONS[config]
    workload = Workload(size, cell)
    programs = {"xpcap": Ours(workload, backend), "products": Products(workload, backend.xp)}
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
        show_json([result.as_dict() for result in results])
        return
    talk(f"{config} {cell} {task} on {backend.name}, {size.batch_size} captions a call")
    talk(processor())
    for result in results:
        show(result.line())
