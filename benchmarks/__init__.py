"""How long patchbay takes: programs that print figures, and are no part of the tests."""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as the command line has it; read when numpy is imported
