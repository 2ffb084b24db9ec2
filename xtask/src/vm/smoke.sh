# Not the shell of busybox, which is linked statically and has no names.
/usr/bin/sh -c 'i=0; while :; do i=$((i + 1)); eval "v$i=xxxxxxxxxxxxxxxx"; sleep 0.02; done' &
victim=$!

holds() {
    grep -q "\"$2\": *[1-9]" "$1" || { echo "$1 has no $2"; return 1; }
}

doctor() {
    "$1" doctor >/tmp/said 2>&1 || { cat /tmp/said; return 1; }
}

attached() {
    "$1" trace -p $victim --tier exact --for 5s --format json -o /tmp/attached.json && holds /tmp/attached.json alloc_bytes
}

command() {
    "$1" trace --tier exact --format json -o /tmp/command.json -- sh -c 'a=1; for b in 1 2 3 4 5 6 7 8 9; do a="$a$b$a"; done' &&
        holds /tmp/command.json alloc_bytes
}

sampled() {
    "$1" trace -p $victim --tier sampled --for 5s --format json -o /tmp/sampled.json
}

growth() {
    "$1" trace -p $victim --tier growth --for 5s --format json -o /tmp/growth.json && holds /tmp/growth.json rss_bytes
}

heap() {
    "$1" heap -p $victim --format json -o /tmp/heap.json && holds /tmp/heap.json blocks
}

daemon() {
    "$1" daemon --all --socket /tmp/socket &
    daemon=$!
    for attempt in 1 2 3 4 5 6 7 8 9 10; do
        sleep 3
        "$1" dump --socket /tmp/socket -p $victim --format json -o /tmp/daemon.json && holds /tmp/daemon.json alloc_bytes && break
    done
    kill $daemon
    wait $daemon && holds /tmp/daemon.json alloc_bytes
}
