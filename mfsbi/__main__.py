"""`python -m mfsbi`, and so `torchrun --nproc-per-node 2 -m mfsbi train ...`."""

from mfsbi.cli import app

if __name__ == "__main__":
    app(prog_name="mfsbi")
