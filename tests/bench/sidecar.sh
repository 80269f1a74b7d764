#!/bin/bash
# Outrigger as a sidecar, for meshbench.py: strict mode, identity checks, metrics as by default; access log off (its
# default). Called as SCRIPT ROLE NETNS POD_IP PEER_IP WORKDIR. $OUTRIGGER names the binary, by default the release
# build beside this script; $OUTRIGGER_FLAGS adds flags.
set -e
role=$1 ns=$2 d=$5
outrigger=${OUTRIGGER:-$(dirname "$0")/../../target/release/outrigger}
[ -x "$outrigger" ] || { echo "no $outrigger: cargo build --release, or set OUTRIGGER"; exit 1; }
in_pod() { ip netns exec "$ns" "$@"; }
in_pod "$outrigger" iptables apply
# shellcheck disable=SC2086
# Not through the function: its process id would be that of a shell.
ip netns exec "$ns" setpriv --reuid=1337 --regid=1337 --clear-groups "$outrigger" sidecar \
  --certificate "$d/$role.pem" --key "$d/$role.key" --trust-bundle "$d/ca.pem" --hosts-file "$d/hosts" \
  --mesh-domain svc.cluster.local --drain-timeout 1s $OUTRIGGER_FLAGS > "$d/outrigger-$role.out" 2>&1 < /dev/null &
echo $! > "$d/$role.pids"
for _ in $(seq 100); do
  in_pod curl -sfo /dev/null http://127.0.0.1:15021/readyz && exit 0
  sleep 0.1
done
cat "$d/outrigger-$role.out"
exit 1
