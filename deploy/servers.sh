# shellcheck shell=bash disable=SC2015 # "A && B || C": when B fails, too
# Private servers from a script: PostgreSQL 15 and a RabbitMQ node that touch nothing of the system's own.
# Sourced by deploy/quickstart, tests/run and (through bash -c) tests/blackbox/roomd.py. Needs bash, perl, util-linux, openssl.
#
# Every server lives in one directory that belongs to it alone: data, socket, configuration, pid. Functions return 0 when what they promise holds,
# else 1 after a sentence on stderr. Waiting means polling a condition each 50 ms up to a deadline.
# Every process started here has SERVERS_HOME=<its directory> in its environment; that is how its pid is told from a reused one.
#
#   packages_missing PACKAGE…             prints those of them that are not installed
#   packages_install LOG PACKAGE…         apt, as root or through sudo; nothing is started by it
#   free_port · port_is_free PORT · port_answers PORT
#   wait_for SECONDS COMMAND…             0 as soon as COMMAND succeeds, 1 at the deadline
#   daemon HOME PID_FILE LOG COMMAND…     own session, no inherited files, working directory HOME; the pid is also in $daemon_pid
#   process_alive PID HOME · process_end PID HOME SIGNAL SECONDS
#   processes_end HOME                    kills whatever still runs with SERVERS_HOME=HOME or below it
#   servers_watch OWNER_PID HOME          does that as soon as OWNER_PID is gone, however it went; prints its own pid (a process group)
#
#   pg_server_start DIR PORT LOG          initdb when there is no data; user postgres (trust) over the socket in DIR/socket, passwords over TCP
#   pg_server_stop DIR [fast|immediate|smart] · pg_server_kill DIR · pg_server_pid DIR
#   pg_server_copy DIR FROM LOG           before its first start: the server in DIR is a copy of the running one in FROM, and follows it (streaming standby)
#   pg_server_sql DIR [DATABASE]          runs the SQL on stdin as superuser
#
#   rabbit_definitions USER PASSWORD TAG CONFIGURE WRITE READ …   prints a definitions file (six words for each user)
#   rabbit_server_start DIR PORT LOG      with DIR/definitions.json when there is one (else guest/guest), DIR/extra.conf appended to its configuration
#   rabbit_server_stop DIR · rabbit_server_kill DIR · rabbit_server_pid DIR · rabbit_server_ctl DIR ARGS…
#   rabbit_server_joins DIR FIRST NAME    before its first start: the node in DIR, called NAME@localhost, is one more of the cluster that the node in FIRST began
#   rabbit_epmd_stop DIR                  the name server survives a stop and a kill of its node; this ends it (with FIRST's, that of its cluster)

complain() {
    printf '%s: %s\n' "${PROGRAM:-servers}" "$*" >&2
}

# --- packages ---

# What it takes to build roomd and to start it with its servers.
# shellcheck disable=SC2034 # for the caller
PACKAGES_TO_RUN=(gcc libc6-dev cmake ninja-build pkg-config libh2o-dev libuv1-dev libwslay-dev librabbitmq-dev libpq-dev libmsgpack-dev libjansson-dev
    libjwt-dev libinih-dev libssl-dev postgresql-15 rabbitmq-server openssl curl perl-base util-linux)

packages_missing() {
    local package
    for package in "$@"; do
        [ "$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || printf '%s ' "$package"
    done
}

packages_install() {
    local log=$1 root=() policy=/usr/sbin/policy-rc.d kept=no status
    shift
    if [ "$(id -u)" != 0 ]; then
        if ! command -v sudo >/dev/null || ! { sudo -n true 2>/dev/null || { [ -t 0 ] && sudo true; }; }; then
            complain "Debian packages are missing and there is neither root nor sudo to install them; have somebody run: apt-get install $*"
            return 1
        fi
        root=(sudo)
    fi
    # Without this the packages would start a PostgreSQL and a RabbitMQ of the system's own.
    if [ ! -e "$policy" ]; then
        printf '#!/bin/sh\nexit 101\n' | "${root[@]}" tee "$policy" >/dev/null && "${root[@]}" chmod 755 "$policy" && kept=yes
    fi
    "${root[@]}" apt-get -o DPkg::Lock::Timeout=300 update >"$log" 2>&1
    "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 -y --no-install-recommends install "$@" >>"$log" 2>&1
    status=$?
    [ $kept = no ] || "${root[@]}" rm -f "$policy"
    if [ $status != 0 ]; then
        if grep -qE 'Could not resolve|Failed to fetch|Could not connect|Temporary failure|Unable to locate package' "$log"; then
            complain "packages are missing ($*) and the package servers cannot be reached: connect to a network or check /etc/apt/sources.list; the log is $log"
        else
            complain "apt-get could not install $*; the log is $log"
        fi
        return 1
    fi
}

# --- ports, waiting, processes ---

# Below the kernel's range for outgoing connections (32768…), so that a port that was noted is still free after a stop. Who holds the UDP port of that number claims it.
free_port() {
    perl -MIO::Socket::INET -e 'for (1 .. 500) { my $port = 20000 + int rand 10000;
        IO::Socket::INET->new(LocalAddr => "127.0.0.1", LocalPort => $port, Proto => "udp") or next;
        IO::Socket::INET->new(LocalAddr => "127.0.0.1", LocalPort => $port, Listen => 1, ReuseAddr => 1) or next; print "$port\n"; exit 0 } exit 1'
}

port_is_free() {
    perl -MIO::Socket::INET -e 'exit !IO::Socket::INET->new(LocalAddr => "127.0.0.1", LocalPort => $ARGV[0], Listen => 1, ReuseAddr => 1)' "$1"
}

port_answers() {
    (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null
}

now_ms() {
    local now=${EPOCHREALTIME/[.,]/}
    echo $((now / 1000))
}

wait_for() {
    local end=$(($(now_ms) + $1 * 1000))
    shift
    until "$@"; do
        [ "$(now_ms)" -lt $end ] || return 1
        sleep 0.05
    done
}

# A lock that the caller holds on some descriptor must not live on in the server: everything above stderr is closed.
daemon() {
    local home=$1 pid_file=$2 log=$3
    shift 3
    (
        exec </dev/null >>"$log" 2>&1
        cd "$home" || exit 1
        echo "$BASHPID" >"$pid_file"
        for descriptor in /proc/self/fd/*; do
            descriptor=${descriptor##*/}
            [ "$descriptor" -le 2 ] || eval "exec $descriptor>&-"
        done
        export SERVERS_HOME=$home
        exec setsid "$@"
    ) &
    daemon_pid=$!
    disown "$daemon_pid" # no word from the shell when it is killed
    # Between fork and exec it is still a copy of this shell, and would look like somebody else's process.
    until process_alive "$daemon_pid" "$home" || [ -z "$(ps_parent "$daemon_pid")" ]; do
        sleep 0.01
    done
}

# Is it the process that was started for HOME? Zombies have no environment any more: they are dead. In the middle of an exec it is empty, too: for a moment, or
# on a busy machine for some tenths of a second.
process_alive() {
    local try environment
    [ -n "$1" ] || return 1
    for try in {1..100}; do
        [ "$try" = 1 ] || sleep 0.02
        environment=$({ tr '\0' '\n' <"/proc/$1/environ"; } 2>/dev/null)
        [ -z "$environment" ] || break
        [ -n "$(ps_parent "$1")" ] || return 1
    done
    [[ $'\n'$environment$'\n' == *$'\nSERVERS_HOME='"$2"$'\n'* ]]
}

process_gone() {
    ! process_alive "$1" "$2"
}

# Parent of a living process; empty for a dead one or a zombie. (The name in the second field may hold anything, so cut after its last bracket.)
ps_parent() {
    local stat=''
    { read -r -d '' stat <"/proc/$1/stat"; } 2>/dev/null
    stat=${stat##*) }
    case $stat in
        Z* | X* | '') ;;
        *) stat=${stat#* } && echo "${stat%% *}" ;;
    esac
}

process_end() {
    process_alive "$1" "$2" || return 0
    kill -s "$3" "$1" 2>/dev/null
    wait_for "$4" process_gone "$1" "$2"
}

processes_of() {
    local entry environment variable
    for entry in /proc/[0-9]*; do
        environment=()
        { mapfile -d '' environment <"$entry/environ"; } 2>/dev/null || continue # without a process for each: where there are many, that took longer than there is time
        for variable in "${environment[@]}"; do
            [[ $variable == SERVERS_HOME="$1" || $variable == SERVERS_HOME="$1"/* ]] && echo "${entry#/proc/}" && break
        done
    done
    return 0
}

no_processes_of() {
    local pids
    mapfile -t pids < <(processes_of "$1")
    [ ${#pids[@]} = 0 ] || { kill -KILL "${pids[@]}" 2>/dev/null && false; }
}

processes_end() {
    wait_for 10 no_processes_of "$1"
}

servers_watch() {
    # shellcheck disable=SC2016 # expanded by the inner shell
    daemon / /dev/null /dev/null bash -c '. "$1"; tail --pid="$2" -s 0.2 -f /dev/null; processes_end "$3"' watch "${BASH_SOURCE[0]}" "$1" "$2"
    echo "$daemon_pid"
}

# --- PostgreSQL ---

pg_bin() {
    local bin
    for bin in /usr/lib/postgresql/{15,16,17,18}/bin; do
        [ -x "$bin/postgres" ] && echo "$bin" && return 0
    done
    complain "PostgreSQL 15 is not installed: apt-get install postgresql-15"
    return 1
}

# The server refuses to run as root.
pg_as_owner() {
    if [ "$(id -u)" = 0 ]; then
        setpriv --reuid=postgres --regid=postgres --init-groups -- "$@"
    else
        "$@"
    fi
}

# Can the user the server runs as live in DIR, and is the path of its socket short enough (108 bytes with the name in it)?
pg_dir_usable() {
    local dir=$1
    [ ${#dir} -le 80 ] || return 1
    [ "$(id -u)" != 0 ] || chown postgres:postgres "$dir" 2>/dev/null || return 1
    pg_as_owner sh -c "cd '$dir' && touch .probe && rm .probe" 2>/dev/null
}

pg_server_pid() {
    local pid
    pid=$(cat "$1/pid" 2>/dev/null) && process_alive "$pid" "$1" && echo "$pid"
}

pg_answers() {
    "$(pg_bin)/pg_isready" -q -h "$1/socket" -p "$2" -t 2
}

pg_answers_or_dead() {
    pg_answers "$1" "$2" || [ -z "$(pg_server_pid "$1")" ]
}

# initdb into a side directory and a rename: one that was interrupted is not taken for a database.
pg_init() {
    local dir=$1 log=$2 bin
    bin=$(pg_bin) || return 1
    rm -rf "$dir/data.new"
    pg_as_owner sh -c "umask 077; cd '$dir' && mkdir -p socket && chmod 700 socket &&
        '$bin/initdb' -D '$dir/data.new' --no-sync --auth-local=trust --auth-host=scram-sha-256 -U postgres --locale=C -E UTF8 --data-checksums" >>"$log" 2>&1 &&
        sync -f "$dir" && mv "$dir/data.new" "$dir/data"
}

pg_server_copy() {
    local dir=$1 from=$2 log=$3 bin port
    bin=$(pg_bin) && port=$(sed -n 4p "$from/data/postmaster.pid") && mkdir -p "$dir" && chmod 700 "$dir" && pg_dir_usable "$dir" || return 1
    pg_as_owner sh -c "umask 077; cd '$dir' && mkdir -p socket && chmod 700 socket &&
        '$bin/pg_basebackup' -D '$dir/data' -R -c fast --no-sync -h '$from/socket' -p $port -U postgres" >>"$log" 2>&1 ||
        { complain "no copy of the server in $from; the log is $log"; return 1; }
}

pg_server_start() {
    local dir=$1 port=$2 log=$3 bin
    bin=$(pg_bin) || return 1
    mkdir -p "$dir" && chmod 700 "$dir" && : >>"$log" || return 1
    # One that lives and does not answer at once may be busy, or starting: what follows would kill it.
    [ -z "$(pg_server_pid "$dir")" ] || { wait_for 20 pg_answers_or_dead "$dir" "$port" && pg_answers "$dir" "$port" && return 0; }
    if ! pg_dir_usable "$dir"; then
        complain "the user PostgreSQL runs as cannot work in $dir (every directory above it needs o+x, at most 80 bytes)"
        return 1
    fi
    if [ ! -e "$dir/data/PG_VERSION" ] && ! pg_init "$dir" "$log"; then
        complain "initdb in $dir failed; the log is $log"
        return 1
    fi
    pg_forget_dead "$(readlink -f "$dir")"
    # A link whose other end is gone without a FIN is noticed after 4 s, so that its locks do not stay.
    daemon "$dir" "$dir/pid" "$log" "${PG_RUN_AS[@]}" "$bin/postgres" -D "$dir/data" -p "$port" -c listen_addresses=127.0.0.1 \
        -c unix_socket_directories="$dir/socket" -c shared_buffers=256MB -c max_wal_size=2GB -c max_connections=200 \
        -c tcp_keepalives_idle=2 -c tcp_keepalives_interval=1 -c tcp_keepalives_count=2 -c logging_collector=off
    if ! wait_for 60 pg_answers_or_dead "$dir" "$port" || ! pg_answers "$dir" "$port"; then
        complain "PostgreSQL does not answer on port $port; the log is $log: $(grep -aE 'FATAL|PANIC|could not' "$log" | tail -n 1)"
        return 1
    fi
}
PG_RUN_AS=()
[ "$(id -u)" != 0 ] || PG_RUN_AS=(setpriv --reuid=postgres --regid=postgres --init-groups --)

pg_server_stop() {
    local pid signal=INT
    pid=$(pg_server_pid "$1") || return 0
    case ${2:-fast} in
        immediate) signal=QUIT ;;
        smart) signal=TERM ;;
    esac
    process_end "$pid" "$1" $signal 60 || { complain "PostgreSQL (pid $pid) did not stop within 60 s"; return 1; }
}

# With its backends: one that is busy would outlive it for a while, and the next start be refused as long.
pg_server_kill() {
    local pid
    pid=$(pg_server_pid "$1") || return 0
    kill -KILL "$pid" 2>/dev/null
    wait_for 10 pg_all_gone "$(readlink -f "$1")"
}

# All of its processes work in the data directory. (They are found by that, because they overwrite their environment.)
pg_all_gone() {
    local entry name left=0
    for entry in /proc/[0-9]*; do
        [ "$entry/cwd" -ef "$1/data" ] || continue # without a process for each: where there are many, that took seconds
        { read -r name <"$entry/comm"; } 2>/dev/null && [ "$name" = postgres ] || continue
        kill -KILL "${entry#/proc/}" 2>/dev/null
        left=1
    done
    return $left
}

# What a killed server leaves behind. PostgreSQL would take it for a running server's when the pid was given to another process, or where
# nobody reaps orphans (many containers), so that it stays as a zombie.
pg_forget_dead() {
    wait_for 10 pg_all_gone "$1" && rm -f "$1/data/postmaster.pid" "$1"/socket/.s.PGSQL.*
}

pg_server_sql() {
    local port
    port=$(sed -n 4p "$1/data/postmaster.pid") || return 1
    PGOPTIONS='-c client_min_messages=warning' psql -X -q -A -t -v ON_ERROR_STOP=1 -h "$1/socket" -p "$port" -U postgres -d "${2:-postgres}" -f -
}

# --- RabbitMQ ---

# Password hash as the broker keeps it: base64(salt + sha256(salt + password)), 4 bytes of salt.
rabbit_password_hash() {
    local salt
    salt=$(openssl rand -hex 4 | sed 's/../\\x&/g')
    # shellcheck disable=SC2059 # the format is the salt
    { printf "$salt"; { printf "$salt"; printf '%s' "$1"; } | openssl dgst -sha256 -binary; } | base64 -w 0
}

rabbit_definitions() {
    local users='' permissions=''
    while [ $# -ge 6 ]; do
        users+="${users:+,}{\"name\":\"$1\",\"password_hash\":\"$(rabbit_password_hash "$2")\",\"hashing_algorithm\":\"rabbit_password_hashing_sha256\",\"tags\":\"$3\"}"
        permissions+="${permissions:+,}{\"user\":\"$1\",\"vhost\":\"/\",\"configure\":\"${4//\\/\\\\}\",\"write\":\"${5//\\/\\\\}\",\"read\":\"${6//\\/\\\\}\"}"
        shift 6
    done
    printf '{"vhosts":[{"name":"/"}],"users":[%s],"permissions":[%s]}\n' "$users" "$permissions"
}

rabbit_server_pid() {
    local pid
    pid=$(cat "$1/pid" 2>/dev/null) && process_alive "$pid" "$1" && echo "$pid"
}

rabbit_epmd_pid() {
    local pid
    pid=$(cat "$1/epmd.pid" 2>/dev/null) && process_alive "$pid" "$1" && echo "$pid"
}

# The nodes of a cluster share a name server and a cookie: those of the node it began with.
rabbit_first() {
    cat "$1/first" 2>/dev/null || echo "$1"
}

rabbit_server_joins() {
    local dir=$1 first=$2
    mkdir -p "$dir/home" && cp -p "$first/home/.erlang.cookie" "$dir/home/" && echo "$first" >"$dir/first" && echo "$3@localhost" >"$dir/name"
}

# The broker's own scripts in /usr/lib, not Debian's wrappers: those change the user and write to /var/log.
RABBIT_BIN=/usr/lib/rabbitmq/bin

# Fills the array RABBIT_ENV: nothing of the caller's RABBITMQ_… leaks in, and names at localhost do not depend on the machine's.
rabbit_env() {
    local dir=$1 rabbit_dist_port rabbit_epmd_port
    # shellcheck source=/dev/null
    . "$dir/ports"
    RABBIT_ENV=(PATH="$PATH" LANG=C.UTF-8 LC_ALL=C.UTF-8 HOME="$dir/home" SERVERS_HOME="$dir" RABBITMQ_NODENAME="$(cat "$dir/name" 2>/dev/null || echo roomd@localhost)"
        RABBITMQ_MNESIA_BASE="$dir/mnesia" RABBITMQ_LOG_BASE="$dir/log" RABBITMQ_LOGS=- RABBITMQ_DIST_PORT="$rabbit_dist_port"
        ERL_EPMD_PORT="$rabbit_epmd_port" ERL_EPMD_ADDRESS=127.0.0.1 RABBITMQ_CONFIG_FILE="$dir/rabbitmq"
        RABBITMQ_CONF_ENV_FILE="$dir/env.conf" RABBITMQ_ENABLED_PLUGINS_FILE="$dir/enabled_plugins" RABBITMQ_PID_FILE="$dir/broker.pid"
        RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS="-kernel inet_dist_use_interface {127,0,0,1}")
}

rabbit_configure() {
    local dir=$1 port=$2
    mkdir -p "$dir/mnesia" "$dir/log" "$dir/home"
    [ -e "$dir/home/.erlang.cookie" ] || (umask 277 && openssl rand -hex 16 >"$dir/home/.erlang.cookie")
    echo '[].' >"$dir/enabled_plugins"
    : >"$dir/env.conf"
    {
        echo "listeners.tcp.default = 127.0.0.1:$port"
        echo 'log.console = true'
        echo 'log.file = false'
        echo 'vm_memory_high_watermark.relative = 0.4'
        echo 'consumer_timeout = 3600000'
        [ ! -e "$dir/definitions.json" ] || echo "load_definitions = $dir/definitions.json"
        # Nodes start one after the other, the first one first: none has to wait for a random time, so that they do not all find nobody.
        [ ! -e "$dir/first" ] || printf 'cluster_formation.%s\n' "classic_config.nodes.1 = roomd@localhost" \
            "randomized_startup_delay_range.min = 0" "randomized_startup_delay_range.max = 1"
        [ ! -e "$dir/extra.conf" ] || cat "$dir/extra.conf"
    } >"$dir/rabbitmq.conf"
}

# The distribution port and the name server's are nobody's business but the node's and rabbitmqctl's.
rabbit_choose_ports() {
    local dir=$1 first rabbit_dist_port='' rabbit_epmd_port=''
    first=$(rabbit_first "$dir")
    # shellcheck source=/dev/null
    [ ! -e "$first/ports" ] || . "$first/ports"
    [ -n "$(rabbit_epmd_pid "$first")" ] || { [ -n "$rabbit_epmd_port" ] && port_is_free "$rabbit_epmd_port"; } || rabbit_epmd_port=$(free_port)
    rabbit_dist_port=$(sed -n 's/^rabbit_dist_port=//p' "$dir/ports" 2>/dev/null)
    [ -n "$rabbit_dist_port" ] && port_is_free "$rabbit_dist_port" || rabbit_dist_port=$(free_port)
    printf 'rabbit_dist_port=%s\nrabbit_epmd_port=%s\n' "$rabbit_dist_port" "$rabbit_epmd_port" >"$dir/ports"
}

# Ours from the start: the one that the node would start by itself is a daemon whose pid nobody knows.
rabbit_epmd_start() {
    local dir rabbit_dist_port rabbit_epmd_port
    dir=$(rabbit_first "$1")
    [ -z "$(rabbit_epmd_pid "$dir")" ] || return 0
    # shellcheck source=/dev/null
    . "$dir/ports"
    daemon "$dir" "$dir/epmd.pid" "$dir/log/epmd.log" epmd -address 127.0.0.1 -port "$rabbit_epmd_port"
    wait_for 10 port_answers "$rabbit_epmd_port"
}

rabbit_answers_or_dead() {
    port_answers "$2" || [ -z "$(rabbit_server_pid "$1")" ]
}

# The port opens last, after users and permissions were read.
rabbit_server_start() {
    local dir=$1 port=$2 log=$3
    if [ ! -x $RABBIT_BIN/rabbitmq-server ]; then
        complain "RabbitMQ is not installed: apt-get install rabbitmq-server"
        return 1
    fi
    if [[ $dir =~ [^A-Za-z0-9_./-] ]]; then
        complain "RabbitMQ's scripts cannot work in a directory with such a name: $dir"
        return 1
    fi
    # One that lives and does not answer yet is starting: a second one beside it would be its end.
    [ -z "$(rabbit_server_pid "$dir")" ] || { wait_for 90 rabbit_answers_or_dead "$dir" "$port" && port_answers "$port" && return 0; }
    mkdir -p "$dir" && rabbit_configure "$dir" "$port" && rabbit_choose_ports "$dir" && : >>"$log" || return 1
    rabbit_epmd_start "$dir" || { complain "RabbitMQ's name server does not start; the log is $dir/log/epmd.log"; return 1; }
    # RUNNING_UNDER_SYSTEMD: the script becomes the node instead of staying as its parent, so that the pid is the node's.
    rabbit_env "$dir"
    daemon "$dir" "$dir/pid" "$log" env -i "${RABBIT_ENV[@]}" RUNNING_UNDER_SYSTEMD=true $RABBIT_BIN/rabbitmq-server
    if ! wait_for 90 rabbit_answers_or_dead "$dir" "$port" || [ -z "$(rabbit_server_pid "$dir")" ] || ! port_answers "$port"; then
        complain "RabbitMQ does not answer on port $port; the log is $log: $(tail -n 1 "$log")"
        return 1
    fi
}

rabbit_server_stop() {
    local pid
    pid=$(rabbit_server_pid "$1") || return 0
    process_end "$pid" "$1" TERM 60 || { complain "RabbitMQ (pid $pid) did not stop within 60 s"; return 1; }
}

rabbit_server_kill() {
    local pid
    pid=$(rabbit_server_pid "$1") || return 0
    process_end "$pid" "$1" KILL 10
}

rabbit_server_ctl() {
    local dir=$1
    shift
    rabbit_env "$dir"
    (cd "$dir" && env -i "${RABBIT_ENV[@]}" $RABBIT_BIN/rabbitmqctl -q "$@")
}

rabbit_epmd_stop() {
    local pid
    pid=$(rabbit_epmd_pid "$1") || return 0
    process_end "$pid" "$1" TERM 10
}
