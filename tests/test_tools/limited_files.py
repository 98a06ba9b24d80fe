"""Runs a script that cannot write large files: LIMIT fails|dies SCRIPT ARGS...

A file of more than LIMIT bytes cannot be written: what does not fit is not there, and the process
gets an error, as with a full disk, or dies of it.
"""

import resource
import runpy
import signal
import sys
from pathlib import Path

if __name__ == '__main__':
    limit, manner, *sys.argv = sys.argv[1:]
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL if manner == 'dies' else signal.SIG_IGN)
    sys.path[0] = str(Path(sys.argv[0]).parent)
    runpy.run_path(sys.argv[0], run_name='__main__')
