# The service as systemd runs it, confined by AppArmor, in a Debian that was booted for it; run there by /etc/systemd/system/try.service.
# Its standard output is what is shown; "##leakscope passed" is its last line if all is well.
set -eu
trap 'status=$?; [ $status -eq 0 ] || { echo "FAILED ($status)"; journalctl --no-pager -n 40 -u "leakscope*" || true; dmesg | grep -E "DENIED|type=1326" || true; }; systemctl poweroff --force' EXIT

fail() {
    echo "$1"
    exit 1
}

find / -xdev \( -path /proc -o -path /sys -o -path /dev -o -path /run -o -path /tmp -o -path /var/lib/dpkg -o -path /var/log -o -path /var/lib/systemd \
    -o -path /var/cache/apparmor \) -prune -o -name '*leakscope*' -print | sort >/tmp/before

dpkg -i /leakscope.deb
systemctl is-enabled leakscope && fail "enabled without being asked"
install -m 644 /usr/share/doc/leakscope/deploy/confinement/apparmor /etc/apparmor.d/leakscope
apparmor_parser -r /etc/apparmor.d/leakscope
echo 'LEAKSCOPE_OPTIONS="--listen 127.0.0.1:7117"' >/etc/default/leakscope

perl -e 'while (1) { push @kept, "x" x 1000; select undef, undef, undef, 0.02 }' &
victim=$!

echo "perf_event_paranoid $(cat /proc/sys/kernel/perf_event_paranoid)"
systemctl enable --now leakscope
main=$(systemctl show -P MainPID leakscope)
echo "$(cat /proc/$main/attr/current), $(grep -E 'NoNewPrivs|Seccomp:|CapBnd' /proc/$main/status | tr '\n\t' '  ')"
grep -q 'leakscope (enforce)' /proc/$main/attr/current || fail "AppArmor does not confine it"
grep -q 'Seccomp:.2' /proc/$main/status || fail "no filter of system calls"

# What the daemon has seen of a process, when it has seen something.
for attempt in $(seq 30); do
    sleep 2
    leakscope dump -p $victim --format json -o /tmp/report.json
    grep -q '"alloc_bytes": *[1-9]' /tmp/report.json && break
    [ $attempt -lt 30 ] || fail "the daemon saw no allocation"
done
echo "daemon: it sees what is allocated"
curl -sf -o /tmp/metrics http://127.0.0.1:7117/metrics
grep -q leakscope_overhead_ratio /tmp/metrics || fail "no metrics"
systemctl reload leakscope
leakscope dump --format text -o /dev/null
[ -n "$(ls /var/cache/leakscope)" ] || fail "no cache of unwind tables"
systemd-analyze security --no-pager leakscope | tail -n 1

# The other subcommands, as the unit would run them.
confined() {
    sed -e 's/^Type=.*/Type=oneshot/' -e '/^Restart/d' -e '/^Exec/d' -e '/^RuntimeDirectory/d' \
        -e "/^EnvironmentFile/a ExecStart=/usr/bin/leakscope $2" /usr/lib/systemd/system/leakscope.service \
        >/run/systemd/system/leakscope-$1.service
    systemctl daemon-reload
    systemctl start leakscope-$1 || fail "leakscope $2 does not work as a service"
}
confined doctor doctor
confined trace "trace -p $victim --tier exact --for 5s --format json -o /var/cache/leakscope/trace.json"
grep -q '"alloc_bytes": *[1-9]' /var/cache/leakscope/trace.json || fail "the trace saw no allocation"
confined growth "trace -p $victim --tier growth --for 5s --format json -o /var/cache/leakscope/growth.json"
confined heap "heap -p $victim --format json -o /var/cache/leakscope/heap.json"
grep -q '"blocks": *[1-9]' /var/cache/leakscope/heap.json || fail "the heap has no blocks"
echo "doctor, trace, growth, heap: they work with what the unit allows"

systemctl stop leakscope
[ "$(systemctl show -P Result leakscope)" = success ] || fail "it did not end well"
kill $victim
dmesg | grep -E 'apparmor="DENIED"|type=1326' && fail "something was refused"
journalctl --no-pager -u leakscope -p warning -q | grep . && fail "it complained"

aa-remove-unknown >/dev/null 2>&1 || true
rm /etc/apparmor.d/leakscope
dpkg --purge leakscope
systemctl daemon-reload
rm -f /run/systemd/system/leakscope-*
find / -xdev \( -path /proc -o -path /sys -o -path /dev -o -path /run -o -path /tmp -o -path /var/lib/dpkg -o -path /var/log -o -path /var/lib/systemd \
    -o -path /var/cache/apparmor \) -prune -o -name '*leakscope*' -print | sort >/tmp/after
diff /tmp/before /tmp/after || fail "left behind, see above"
echo "##leakscope passed"
