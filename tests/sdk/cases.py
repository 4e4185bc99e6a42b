"""Runs cases one after the other: a line for each, and an exit code. Arguments choose some by a part of their names."""
import asyncio
import sys
import traceback

LONGEST = 60  # seconds


def main(client, *cases):
    failed = 0
    for case in cases:
        name = f"{client}: {case.__name__.replace('_', ' ')}"
        if sys.argv[1:] and not any(part in name for part in sys.argv[1:]):
            continue
        try:
            asyncio.run(asyncio.wait_for(case(), LONGEST))
            print(f"ok      {name}", flush=True)
        except Exception as error:
            failed += 1
            print(f"FAILED  {name}: {error!r}", flush=True)
            traceback.print_exc()
    sys.exit(1 if failed else 0)
