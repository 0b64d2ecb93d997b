"""Ties the fork server of data workers to the life of its rank; only that server may import this.

Workers end with the server in turn, also a stopped worker, which could not notice by itself that
its rank is gone.
"""

import signal

from ernie_vilg.system.processes import signal_at_parents_end

signal_at_parents_end(signal.SIGKILL)
