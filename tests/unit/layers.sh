#!/bin/sh
# room/base <- gateway-adapter <- room <- history <- proxy <- room/server: an include against the arrows does not
# compile, one along them does. usage: layers.sh SOURCE_DIR BUILD_DIR COMPILER
set -eu
source=$1 build=$2 compiler=$3
cd "$build" # the compiler looks for "headers" of its standard input in the current folder too
failed=0

compiles() { # layer, header
    printf '#include "%s"\n' "$2" | $compiler -fsyntax-only -w -x c -I "$build/include/$1" - 2>/dev/null
}

exists() {
    [ -e "$source/$1" ] && [ -d "$build/include/$2" ]
}

must_see() {
    exists "$2" "$1" || return 0
    # The path alone: some headers need the flags of the libraries they use.
    [ -e "$build/include/$1/$2" ] || { echo "layer $1 cannot see $2"; failed=1; }
}

must_not_see() {
    exists "$2" "$1" || return 0
    if [ -e "$build/include/$1/$2" ] || compiles "$1" "$2"; then
        echo "layer $1 can include $2, which stands to its right"
        failed=1
    fi
}

headers() { (cd "$source" && ls "$1"/*.h 2>/dev/null) || true; }

check() { # layer, folders it sees, then --, folders it must not see
    layer=$1
    shift
    seen=yes
    for folder in "$@"; do
        if [ "$folder" = -- ]; then
            seen=no
            continue
        fi
        for header in $(headers "$folder"); do
            if [ $seen = yes ]; then must_see "$layer" "$header"; else must_not_see "$layer" "$header"; fi
        done
    done
}

check base -- gateway-adapter room history proxy room/server
check adapter -- room/base room history proxy room/server
check room room/base gateway-adapter -- history proxy room/server
check history room/base gateway-adapter room -- proxy room/server
check proxy room/base gateway-adapter room history -- room/server
check baseservice room/base -- gateway-adapter room history proxy room/server
check server room/base gateway-adapter room history proxy --

# The way round the search path.
if grep -rnE '^[[:space:]]*#[[:space:]]*include[[:space:]]*["<]([^">]*/)?\.\./' --include='*.[ch]' \
    "$source/room" "$source/history" "$source/proxy" "$source/gateway-adapter"; then
    echo "includes are written from the top of the tree or by plain name, never with .."
    failed=1
fi
exit $failed
