"""What holds for all tests.

Processes that tests start, ranks and data workers alike, are forked from one server of this
process, which imports once what any of them needs. Whoever starts it must know all of that.
"""

from ernie_vilg.data import workers

workers.PRELOADED_MODULES = ["tests.rank_imports"]
