"""`xpcap selfcheck`."""

from __future__ import annotations

import click

from xpcap.cli import _options as common


@click.command()
@common.compute_options
@common.json_option
def selfcheck(device: str, as_json: bool) -> int:
    """Check every layer's gradients and the reference cases on a device.

    The exit status is 1 if a check fails.
    """
    from xpcap.selfcheck import run

    checks = run(common.open_device(device))
    failed = [check for check in checks if not check.passed]
    if as_json:
        common.print_json([{**check._asdict(), "passed": check.passed} for check in checks])
    else:
        width = max(len(check.name) for check in checks)
        common.print_result(f"{'check':<{width}}  {'error':>9}  {'limit':>9}")
        for check in checks:
            verdict = "" if check.passed else "  FAILED"
            common.print_result(
                f"{check.name:<{width}}  {check.error:9.2e}  {check.limit:9.2e}{verdict}"
            )
    common.print_message(f"{len(checks)} checks, {len(failed)} failed")
    return 1 if failed else 0
