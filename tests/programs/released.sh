#!/bin/bash
# Leaks of released software, as distributions ship it, for the verdicts. As behaviours.c, by the same commands:
#
#   released.sh list       a line for each: NAME, a tab, `leak` or, where it is not installed, `missing`, a tab, what it does or wants
#   released.sh NAME WAIT  waits so many seconds, then runs it until the standard input ends

python=/usr/bin/python3
[ -x "$python" ] || python=python3

# jq up to 1.6 does not free the message of the error that ltrimstr takes for "no".
jq_ltrimstr() { [ "$(jq --version 2>/dev/null)" = jq-1.6 ]; }
# ctypes keeps every type that a pointer was made to in a table, up to Python 3.13.
ctypes_pointer() { "$python" -c 'import ctypes, sys; sys.exit(sys.version_info >= (3, 14))' 2>/dev/null; }
# glibc keeps every value that was ever put into the environment (stdlib/setenv.c, known_values).
environment() { "$python" -c 'import ctypes; ctypes.CDLL("libc.so.6").gnu_get_libc_version' 2>/dev/null; }

if [ "$*" = list ]; then
    list() {
        if "$1"; then printf '%s\tleak\t%s\n' "released_$1" "$2"; else printf '%s\tmissing\t%s\n' "released_$1" "$3"; fi
    }
    list jq_ltrimstr 'jq 1.6: ltrimstr of a number, ten times a second' 'it takes jq 1.6'
    list ctypes_pointer 'CPython: ctypes.POINTER of a new type, five times a second' 'it takes CPython before 3.14 with ctypes'
    list environment 'glibc: setenv (os.environ of CPython), ten times a second' 'it takes CPython on glibc'
    exit
fi

case $1 in
released_jq_ltrimstr)
    exec jq --unbuffered 'ltrimstr("a")' < <(
        sleep "$2"
        while read -r -t 0.1 _ || [ $? -gt 128 ]; do echo 5; done
    ) > /dev/null
    ;;
released_ctypes_pointer)
    exec "$python" -c '
import ctypes, select, sys, time
time.sleep(float(sys.argv[1]))
while not select.select([sys.stdin], [], [], 0.2)[0]:
    class Made(ctypes.Structure):
        _fields_ = [("field", ctypes.c_int)]
    ctypes.POINTER(Made)
' "$2"
    ;;
released_environment)
    exec "$python" -c '
import os, select, sys, time
time.sleep(float(sys.argv[1]))
number = 0
while not select.select([sys.stdin], [], [], 0.1)[0]:
    number += 1
    os.environ["STATE"] = "what has come of request number %d" % number
' "$2"
    ;;
*)
    echo 'usage: released.sh list | released.sh NAME WAIT' >&2
    exit 2
    ;;
esac
