#!/bin/sh
# Run a program of launch/ by its name, with its settings, or any other command:
#   docker run IMAGE draw_shapes output_dir=outputs/pairs
#   docker run IMAGE deepspeed --num_gpus 8 launch/pretrain.py experiment=base_300m
set -eu
root=$(dirname "$(dirname "$(readlink -f "$0")")")
program=${1:-help}
if [ "$program" = help ]; then
    echo "programs: $(cd "$root/conf" && echo *.yaml | sed 's/\.yaml//g')"
    echo "or any command, such as: deepspeed launch/pretrain.py experiment=quickstart"
elif [ -f "$root/launch/$program.py" ]; then
    shift
    exec python "$root/launch/$program.py" "$@"
else
    exec "$@"
fi
