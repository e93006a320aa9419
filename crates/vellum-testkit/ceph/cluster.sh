#!/usr/bin/env bash
#
# cluster.sh: a private, throw-away Ceph cluster on loopback, without systemd.
#
#   cluster.sh start   DIR [options]   make the cluster if need be, start it, wait until it serves I/O
#   cluster.sh stop    DIR             stop its daemons (by pid file), keep the data
#   cluster.sh status  DIR             say which daemons run; exit 0 only if all of them do
#   cluster.sh destroy DIR             stop, then remove DIR
#   cluster.sh env     DIR             print what to eval so that ceph, rbd, rados, fio ... find it
#
# Options of start (they count when the cluster is made, and are kept with it):
#   --store bluestore|memstore   where the OSD keeps objects           (bluestore)
#   --size  BYTES                size of the OSD's store, K/M/G/T      (bluestore 8G sparse, memstore 6G)
#   --auth  cephx|none           authentication                        (cephx)
#   --mgr   yes|no               a manager: only statistics need it    (yes)
#   --pools "A B ..."            pools to make, for RBD                (rbd rbd2)
#   --pgs   N                    placement groups of each pool         (8)
#   --port  N                    monitor port, N for v2 and N+1 for v1 (a free pair)
#   --conf  "key = value"        a further line for [global]; repeatable
#
# Everything lives under DIR: ceph.conf, keyring, data, logs, pid files, sockets.
# All daemons bind 127.0.0.1 only. Needs: ceph-mon ceph-osd ceph-common, and ceph-mgr for a manager.

set -euo pipefail

readonly PROGRAM=${0##*/}
readonly HOST=127.0.0.1
readonly PYTHON=/usr/bin/python3        # the distribution's: it has the rados module
readonly MARK=.cluster.sh                # DIR is ours
readonly READY=.ready                  # DIR holds a whole cluster
readonly STOP_SECONDS=60               # a daemon's time to end before SIGKILL (a memory store writes itself to DIR)
readonly SERVE_SECONDS=60              # the cluster's time to serve its first I/O

say()  { printf '%s: %s\n' "$PROGRAM" "$*" >&2; }
die()  { say "$*"; exit 1; }
usage() { sed -n '3,/^$/s/^# \{0,1\}//p' "$0" >&2; exit 2; }

# ---------------------------------------------------------------- daemons

# Every daemon's name is TYPE.ID; the OSD starts after the monitor, and stops before it.
daemons() { local name; for name in mon.a osd.0 mgr.x; do [[ -d $DIR/$name ]] && echo "$name"; done; return 0; }

# The pid of a running daemon of this cluster, or nothing. A pid file that outlived its
# process may name a stranger, so the process must have been started on our ceph.conf.
pid_of() {
    local pid
    pid=$(cat "$DIR/run/$1.pid" 2>/dev/null) || return 1
    [[ $pid =~ ^[1-9][0-9]*$ ]] || return 1
    tr '\0' '\n' <"/proc/$pid/cmdline" 2>/dev/null | grep -qxF -- "$DIR/ceph.conf" || return 1
    echo "$pid"
}

# Whether a process still runs; one that has ended, but that nobody has reaped, does not.
alive() {
    local stat
    stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
    [[ ${stat##*) } != [ZX]* ]]
}

start_daemon() {
    local name=$1
    pid_of "$name" >/dev/null && return 0
    rm -f "$DIR/run/$name.pid" "$DIR/run/$name.asok"
    # Without -f it goes to the background once it has initialised, and fails here if it cannot.
    "ceph-${name%.*}" -c "$DIR/ceph.conf" -i "${name#*.}" >"$DIR/log/$name.out" 2>&1 </dev/null ||
        { tail -n 20 "$DIR/log/$name.out" >&2; die "$name did not start; see $DIR/log"; }
}

stop_daemon() {
    local name=$1 signal=$2 pid deadline
    pid=$(pid_of "$name") || { rm -f "$DIR/run/$name.pid"; return 0; }
    kill -"$signal" "$pid" 2>/dev/null || true
    deadline=$((SECONDS + STOP_SECONDS))
    while alive "$pid"; do
        if ((SECONDS >= deadline)); then
            say "$name (pid $pid) outlived SIG$signal by $STOP_SECONDS s: SIGKILL"
            kill -KILL "$pid" 2>/dev/null || true
            deadline=$((SECONDS + STOP_SECONDS))
        fi
        sleep 0.05
    done
    rm -f "$DIR/run/$name.pid" "$DIR/run/$name.asok"
}

# ---------------------------------------------------------------- making

free_port_pair() {
    local port
    for port in $(shuf -i 20000-29998 -n 200); do
        ((port % 2 == 0)) || continue
        { : <"/dev/tcp/$HOST/$port"; } 2>/dev/null && continue
        { : <"/dev/tcp/$HOST/$((port + 1))"; } 2>/dev/null && continue
        echo "$port"
        return 0
    done
    die "no free pair of ports"
}

bytes() { numfmt --from=iec -- "$1" 2>/dev/null || die "not a size: $1"; }

write_conf() {
    local fsid=$1 extra
    # ceph.conf(5): the daemons and the clients read this one file.
    cat >"$DIR/ceph.conf" <<EOF
[global]
fsid = $fsid
mon host = [v2:$HOST:$PORT,v1:$HOST:$((PORT + 1))]
mon initial members = a
public addr = $HOST
cluster addr = $HOST
auth cluster required = $AUTH
auth service required = $AUTH
auth client required = $AUTH
auth allow insecure global id reclaim = false
keyring = $DIR/keyring

run dir = $DIR/run
pid file = $DIR/run/\$name.pid
admin socket = $DIR/run/\$name.asok
log file = $DIR/log/\$name.log
crash dir = $DIR/log

# One OSD holds everything, once.
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = $PGS
osd pool default pgp num = $PGS
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon allow pool delete = true
mon warn on pool no redundancy = false
mon max pg per osd = 4096
EOF
    for extra in "${EXTRA[@]}"; do printf '%s\n' "$extra" >>"$DIR/ceph.conf"; done
    cat >>"$DIR/ceph.conf" <<EOF

[client]
log file =
admin socket =
pid file =
rbd default clone format = 2

[mon]
mon data = $DIR/\$name
mon data avail warn = 2
mon data avail crit = 1
mgr initial modules = iostat
paxos propose interval = 0.02
paxos min wait = 0.01
mon cluster log file = $DIR/log/cluster.log

[mgr]
mgr data = $DIR/\$name
mgr stats period = 1
mgr/devicehealth/enable_monitoring = false
mgr/telemetry/nag = false

[osd]
osd data = $DIR/\$name
osd journal = $DIR/\$name/journal
osd objectstore = $STORE
osd crush initial weight = 1
osd heartbeat grace = 120
osd memory target = 2147483648
osd scrub auto repair = false
bluestore block create = true
bluestore block size = $SIZE
bluestore fsck on mount = false
bluestore debug enforce settings = ssd
memstore device bytes = $SIZE
EOF
    # A memory store is written to DIR when it unmounts: let it.
    [[ $STORE != memstore ]] || echo 'osd fast shutdown = false' >>"$DIR/ceph.conf"
}

# All keys are made here and given to the monitor at its birth: no later `ceph auth` calls.
# Daemons and clients find their own key in this one file.
write_keyring() {
    local keyring=$DIR/keyring
    {
        ceph-authtool -C "$keyring" -g -n client.admin \
            --cap mon 'allow *' --cap osd 'allow *' --cap mgr 'allow *' --cap mds 'allow *'
        ceph-authtool "$keyring" -g -n mon. --cap mon 'allow *'
        ceph-authtool "$keyring" -g -n osd.0 \
            --cap mon 'allow profile osd' --cap osd 'allow *' --cap mgr 'allow profile osd'
        ceph-authtool "$keyring" -g -n mgr.x \
            --cap mon 'allow profile mgr' --cap osd 'allow *' --cap mds 'allow *'
    } >"$DIR/log/authtool.out"
    chmod 600 "$keyring"
}

make_cluster() {
    local fsid osd_uuid
    fsid=$(uuidgen)
    osd_uuid=$(uuidgen)
    mkdir -p "$DIR"/{run,log,mon.a,osd.0}
    [[ $MGR == no ]] || mkdir -p "$DIR/mgr.x"
    write_conf "$fsid"
    write_keyring

    monmaptool --create --clobber --fsid "$fsid" \
        --addv a "[v2:$HOST:$PORT,v1:$HOST:$((PORT + 1))]" "$DIR/monmap" >"$DIR/log/monmaptool.out"
    ceph-mon -c "$DIR/ceph.conf" --mkfs -i a --monmap "$DIR/monmap" --keyring "$DIR/keyring" \
        >"$DIR/log/mon.mkfs.out" 2>&1 || { tail -n 20 "$DIR/log/mon.mkfs.out" >&2; die "monitor: mkfs failed"; }
    start_daemon mon.a

    # The store is made while the monitor elects itself and the pools are made.
    ceph-osd -c "$DIR/ceph.conf" --mkfs -i 0 --osd-uuid "$osd_uuid" >"$DIR/log/osd.mkfs.out" 2>&1 &
    local mkfs=$!
    make_pools "$osd_uuid"
    wait "$mkfs" || { tail -n 20 "$DIR/log/osd.mkfs.out" >&2; die "OSD: mkfs failed"; }
}

# One client process sends every command: a `ceph` call each would cost most of the start-up.
make_pools() {
    "$PYTHON" - "$DIR/ceph.conf" "$1" "$PGS" "${POOLS[@]}" <<'EOF'
import json, sys
import rados

conf, osd_uuid, pgs, *pools = sys.argv[1:]
with rados.Rados(conffile=conf, conf={"client_mount_timeout": "30"}) as cluster:
    def command(prefix, **args):
        rc, _, err = cluster.mon_command(json.dumps({"prefix": prefix, **args}), b"")
        if rc:
            sys.exit(f"{prefix} {args}: {err} ({rc})")

    command("osd new", uuid=osd_uuid, id=0)
    command("osd set-require-min-compat-client", version="mimic")   # clones of format 2
    for pool in pools:
        command("osd pool create", pool=pool, pg_num=int(pgs))
        command("osd pool application enable", pool=pool, app="rbd")
EOF
}

# Ready means: an object of every pool can be written and removed.
wait_for_io() {
    timeout "$SERVE_SECONDS" "$PYTHON" - "$DIR/ceph.conf" "${POOLS[@]}" <<'EOF' || die "no I/O within $SERVE_SECONDS s; see $DIR/log"
import sys
import rados

conf, *pools = sys.argv[1:]
with rados.Rados(conffile=conf, conf={"client_mount_timeout": "30"}) as cluster:
    for pool in pools:
        with cluster.open_ioctx(pool) as io:
            io.write_full("cluster.sh.probe", b"x")
            io.remove_object("cluster.sh.probe")
EOF
}

# ---------------------------------------------------------------- commands

parse_start_options() {
    STORE=bluestore SIZE='' AUTH=cephx MGR=yes POOLS=(rbd rbd2) PGS=8 PORT='' EXTRA=()
    while (($#)); do
        [[ $1 == --* && $# -ge 2 ]] || usage
        case $1 in
            --store) STORE=$2; [[ $2 == bluestore || $2 == memstore ]] || usage ;;
            --size)  SIZE=$(bytes "$2") ;;
            --auth)  AUTH=$2;  [[ $2 == cephx || $2 == none ]] || usage ;;
            --mgr)   MGR=$2;   [[ $2 == yes || $2 == no ]] || usage ;;
            --pools) read -ra POOLS <<<"$2" ;;
            --pgs)   PGS=$2 ;;
            --port)  PORT=$2 ;;
            --conf)  EXTRA+=("$2") ;;
            *) usage ;;
        esac
        shift 2
    done
    if [[ -z $SIZE ]]; then
        case $STORE in bluestore) SIZE=$(bytes 8G) ;; memstore) SIZE=$(bytes 6G) ;; esac
    fi
}

cmd_start() {
    parse_start_options "$@"
    local tool began=$EPOCHREALTIME
    trap '(($? == 0)) || cmd_stop' EXIT          # a start that fails leaves nothing running
    for tool in ceph-mon ceph-osd ceph-authtool monmaptool; do
        command -v "$tool" >/dev/null || die "$tool is missing (Debian: ceph-mon ceph-osd ceph-common)"
    done
    [[ $MGR == no ]] || command -v ceph-mgr >/dev/null || die "ceph-mgr is missing; or start with --mgr no"
    # A socket's path is at most 107 bytes long; ours ends in run/osd.0.asok.
    ((${#DIR} <= 90)) || die "DIR is too long for a Unix socket's path: $DIR"

    if [[ -e $DIR/$READY ]]; then
        mapfile -t POOLS <"$DIR/pools"
    else
        if [[ -e $DIR/$MARK ]]; then              # a start that was cut off
            stop_all KILL
            rm -rf -- "$DIR"
        elif [[ -d $DIR && -n $(ls -A "$DIR") ]]; then
            die "$DIR is neither empty nor one of mine"
        fi
        mkdir -p "$DIR"
        : >"$DIR/$MARK"
        [[ -n $PORT ]] || PORT=$(free_port_pair)
        printf '%s\n' "${POOLS[@]}" >"$DIR/pools"
        make_cluster
    fi
    start_daemon mon.a
    start_daemon osd.0
    [[ ! -d $DIR/mgr.x ]] || start_daemon mgr.x
    wait_for_io
    : >"$DIR/$READY"
    say "serving on $DIR/ceph.conf after $(awk "BEGIN{printf \"%.1f\", $EPOCHREALTIME - $began}") s"
}

stop_all() {
    local name
    for name in $(daemons | tac); do stop_daemon "$name" "$1"; done
}

cmd_stop() { stop_all TERM; }

cmd_status() {
    local name pid rc=0
    [[ -e $DIR/$MARK ]] || die "no cluster in $DIR"
    for name in $(daemons); do
        if pid=$(pid_of "$name"); then echo "$name running $pid"; else echo "$name stopped"; rc=3; fi
    done
    return $rc
}

cmd_destroy() {
    [[ -e $DIR ]] || return 0
    [[ -e $DIR/$MARK ]] || die "$DIR is not one of mine"
    stop_all KILL                                # its data goes too
    rm -rf -- "$DIR"
}

cmd_env() { printf 'export CEPH_CONF=%q CEPH_ARGS=\n' "$DIR/ceph.conf"; }

(($# >= 2)) || usage
command=$1
DIR=$(realpath -m -- "$2")
shift 2
case $command in
    start) cmd_start "$@" ;;
    stop | status | destroy | env) (($# == 0)) || usage; "cmd_$command" ;;
    *) usage ;;
esac
