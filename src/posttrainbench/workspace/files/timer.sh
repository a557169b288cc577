#!/usr/bin/env bash
# Prints how much time is left. The deadline is kept outside of your reach; changing this script changes nothing.
deadline=$(cat /run/ptb/deadline)
left=$(( deadline - $(date +%s) ))
if [ "$left" -le 0 ]; then
  echo "Timer expired!"
else
  printf 'Remaining time (hours:minutes:seconds):\n%d:%02d:%02d\n' $(( left / 3600 )) $(( left % 3600 / 60 )) $(( left % 60 ))
fi
