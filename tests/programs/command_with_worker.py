"""A command of the pack that runs a function in another process; tests put it in the place of `train_cli`."""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor


def add_arguments(parser):
    parser.add_argument("method")


def work(parent):
    return "worked in another process" if os.getpid() != parent else "worked here"


def main(options):
    with ProcessPoolExecutor(1, multiprocessing.get_context(options.method)) as pool:
        print(pool.submit(work, os.getpid()).result())
    return 0
