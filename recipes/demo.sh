#!/bin/sh
# The demonstration: three public commands, printed as they run.
set -eu

run() {
    printf '\n$'
    for word in "$@"; do
        case $word in *' '*) printf ' "%s"' "$word" ;; *) printf ' %s' "$word" ;; esac
    done
    printf '\n'
    "$@"
}

run aurora train demo --output runs/demo
[ -f runs/demo/merged/config.json ] || run aurora merge runs/demo --form calibrated --output runs/demo/merged
run aurora predict runs/demo/merged \
    "A warm, funny and beautifully acted film." \
    "Two hours of my life that I will never get back." \
    "Not half as clever as it thinks it is."
