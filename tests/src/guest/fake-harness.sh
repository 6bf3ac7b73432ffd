#!/bin/sh
# Looks like a test binary from the outside, one test at a time; the names of the
# tests say what they do. For the tests of binary.rs.
while [ "$1" != -- ]; do
    shift
done
shift
failed=
for name in "$@"; do
    case $name in
    hangs*) sleep 1000 ;;
    crashes*) kill -9 $$ ;;
    ends*) exit 0 ;;
    fails*)
        echo "test $name ... FAILED"
        failed="$failed $name"
        ;;
    skips*)
        echo "{\"test\":\"$name\",\"probed\":\"EINVAL\"}" >>"$ZT_SKIPPED"
        echo "test $name ... ok"
        ;;
    lost*)
        echo '{"test":"src/x.rs:1","probed":"EINVAL"}' >>"$ZT_SKIPPED"
        echo "test $name ... ok"
        ;;
    lies*)
        echo "test $name ... ok"
        exit 101
        ;;
    ignored*) echo "test $name ... ignored, for a reason" ;;
    *) echo "test $name ... ok" ;;
    esac
done
[ -z "$failed" ] && exit 0
printf '\nfailures:\n\n'
for name in $failed; do
    printf -- '---- %s stdout ----\nwhy %s\n\n' "$name" "$name"
done
printf '\nfailures:\n'
exit 101
