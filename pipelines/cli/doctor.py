"""`bytelm doctor`: what this machine has for bytelm, and what is missing."""

from __future__ import annotations

import argparse
import json

import bytelm

HELP = "Check this machine: what will be used, what is missing, and what brings it."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(options: argparse.Namespace, argv: list[str]) -> int:
    """Print the checks; the status is 0 where bytelm can train and generate."""
    from bytelm.pipelines.runtime.doctor import OK, Diagnosis, diagnose

    def lines(diagnosis: Diagnosis) -> None:
        section, width = "", max(len(check.name) for check in diagnosis.checks)
        for check in diagnosis.checks:
            if check.section != section:
                section = check.section
                print(f"\n{section}")
            print(f"  {check.status:<8}{check.name:<{width}}  {check.value}")
            if check.status != OK and check.remedy:
                print(f"  {'':<8}{'':<{width}}  -> {check.remedy}")
        print(f"\n{diagnosis.verdict}")

    diagnosis = diagnose()
    if options.json:
        values = {
            "version": bytelm.__version__,
            "can_train": diagnosis.can_train,
            "can_generate": diagnosis.can_generate,
            "verdict": diagnosis.verdict,
            "device": diagnosis.probe.device,
            "checks": [vars(check) for check in diagnosis.checks],
        }
        print(json.dumps(values, indent=1))
    else:
        print(f"bytelm {bytelm.__version__}")
        lines(diagnosis)
    return 0 if diagnosis.can_train else 1
