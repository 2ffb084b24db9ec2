# Installs, uses and removes a package in a root, with all changes in memory. Run by `unshare --mount`, as root.
# Arguments: the root, an empty folder, how it is installed (deb, rpm), the package.
set -eu
root=$1 space=$2 kind=$3 package=$4

mount -t tmpfs tmpfs "$space"
mkdir "$space/upper" "$space/work" "$space/root"
mount -t overlay -o "lowerdir=$root,upperdir=$space/upper,workdir=$space/work" overlay "$space/root"
cd "$space/root"
mount -t proc proc proc
mount --rbind /sys sys
mount --rbind /dev dev

inside() {
    chroot . /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 "$@"
}

# Everything but the books of the package managers.
list() {
    find . -xdev \( -path ./proc -o -path ./sys -o -path ./dev -o -path ./var/lib/dpkg -o -path ./var/lib/rpm -o -path ./root/.rpmdb \) -prune -o \
        ! -name dpkg.log -printf '%p %y %m %U %s %l\n' | sed '/^[^ ]* d /s/ [0-9]* $//' | sort
}

there() {
    for file; do
        [ -e ".$file" ] || { echo "not installed: $file"; exit 1; }
    done
}

[ "$kind" != rpm ] || rpm --root "$PWD" --initdb
list >"$space/before"
case $kind in
    deb)
        cp "$package" tmp/package.deb
        inside dpkg -i /tmp/package.deb
        rm tmp/package.deb
        inside dpkg -V leakscope
        ;;
    rpm) rpm --root "$PWD" -i --nodeps "$package" ;;
esac
there /usr/bin/leakscope /usr/lib/systemd/system/leakscope.service /etc/default/leakscope \
    /etc/leakscope/config.toml \
    /usr/share/man/man1/leakscope.1.gz /usr/share/man/man1/leakscope-trace.1.gz \
    /usr/share/bash-completion/completions/leakscope /usr/share/doc/leakscope/LICENSE-MIT
[ ! -e etc/systemd/system/multi-user.target.wants/leakscope.service ] || { echo "enabled without being asked"; exit 1; }
inside leakscope --version
inside leakscope doctor
inside leakscope trace --tier exact --format json -o /tmp/report.json -- /bin/ls -R /etc >/dev/null
grep -q '"alloc_bytes": *[1-9]' tmp/report.json || { echo "the trace saw no allocation"; cat tmp/report.json; exit 1; }
inside sh -c 'leakscope heap -p $$ --format json -o /tmp/heap.json; true'
grep -q '"blocks": *[1-9]' tmp/heap.json || { echo "the heap has no blocks"; exit 1; }
# Of a program that does nothing but allocate not every call is traced, and what is spent is known.
(exec chroot . /usr/bin/perl -e 'while (1) { my @words = map { "word $_" } 1 .. 1000 }') &
loop=$!
inside leakscope trace -p $loop --for 15s --format json -o /tmp/loop.json
kill $loop
for part in '"tier": *"sampled"' '"target_cpu_fraction": *0\.0[0-9]*[1-9]' '"alloc_bytes": *[1-9]'; do
    grep -q "$part" tmp/loop.json || { echo "the trace of a loop has no $part"; cat tmp/loop.json; exit 1; }
done
rm tmp/report.json tmp/heap.json tmp/loop.json
# A name of a host, where nsswitch.conf names a module of the machine's own C library.
mv etc/nsswitch.conf tmp/
echo 'hosts: hesiod files dns' >etc/nsswitch.conf
status=0
inside leakscope dump --url http://nowhere.invalid:7117 || status=$?
mv tmp/nsswitch.conf etc/
[ $status = 1 ] || { echo "asking a host that there is none of ended with $status"; exit 1; }
case $kind in
    deb)
        inside dpkg --remove leakscope
        there /etc/default/leakscope
        inside dpkg --purge leakscope
        ;;
    rpm) rpm --root "$PWD" -e leakscope ;;
esac
list >"$space/after"
diff "$space/before" "$space/after" || { echo "left behind, see above"; exit 1; }
