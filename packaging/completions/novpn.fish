# fish completion for novpn(1)

function __novpn_classes
    novpn status --json 2>/dev/null | string match -rga '"name":"([a-z][a-z0-9_]*)","table"'
end
set -l commands run add remove off on status watch explain plan doctor apps desktop-entry check reload metrics down
function __novpn_in
    __fish_seen_subcommand_from $argv
end

complete -c novpn -f
complete -c novpn -l help -s h -d 'Print help'
complete -c novpn -l runtime-dir -xa '(__fish_complete_directories)' -d 'Where the socket of the agent is'
complete -c novpn -n "not __fish_seen_subcommand_from $commands" -l version -d 'Print the version'
complete -c novpn -n "not __fish_seen_subcommand_from $commands" -a run -d 'Run a program outside the VPN'
complete -c novpn -n "not __fish_seen_subcommand_from $commands" -a add -d 'Put a running process in a class'
complete -c novpn -n "not __fish_seen_subcommand_from $commands" -a remove -d 'Take a process out of its class'
complete -c novpn -n "not __fish_seen_subcommand_from $commands" -a off -d 'Turn a class off for a while'
complete -c novpn -n "not __fish_seen_subcommand_from $commands" -a on -d 'Turn a class on again'
complete -c novpn -n "not __fish_seen_subcommand_from $commands" -a status -d 'Say how things are'
complete -c novpn -n "not __fish_seen_subcommand_from $commands" -a watch -d 'Say what happens, one line an event'
complete -c novpn -n "not __fish_seen_subcommand_from $commands" -a explain -d 'Say which way packets to an address go'
complete -c novpn -n "not __fish_seen_subcommand_from $commands" -a plan -d 'Print what the agent would change now'
complete -c novpn -n "not __fish_seen_subcommand_from $commands" -a doctor -d 'Look for what is wrong, and say how to mend it'
complete -c novpn -n "not __fish_seen_subcommand_from $commands" -a apps -d 'Say what can be written in apps: of a class'
complete -c novpn -n "not __fish_seen_subcommand_from $commands" -a desktop-entry -d 'Write a launcher that starts an application in a class'
complete -c novpn -n "not __fish_seen_subcommand_from $commands" -a check -d 'Say whether a config file is right'
complete -c novpn -n "not __fish_seen_subcommand_from $commands" -a reload -d 'Have the agent read its config again'
complete -c novpn -n "not __fish_seen_subcommand_from $commands" -a metrics -d 'Print OpenMetrics text'
complete -c novpn -n "not __fish_seen_subcommand_from $commands" -a down -d 'Have the agent release everything and end'
complete -c novpn -n '__novpn_in run' -xa '(__fish_complete_subcommand --fcs-skip=2)'
complete -c novpn -n '__novpn_in run' -l anyway -d 'Also where no agent runs'
complete -c novpn -n '__novpn_in run' -l shell -d 'Your login shell'
complete -c novpn -n '__novpn_in desktop-entry' -xa '(novpn apps 2>/dev/null | string split -f1 " ")'
complete -c novpn -n '__novpn_in run add explain desktop-entry' -l class -xa '(__novpn_classes)' -d 'The class'
complete -c novpn -n '__novpn_in add remove' -xa '(__fish_complete_pids)'
complete -c novpn -n '__novpn_in on off' -xa '(__novpn_classes)'
complete -c novpn -n '__novpn_in off' -l for -x -d 'Turn it on again after this'
complete -c novpn -n '__novpn_in status watch explain plan doctor apps' -l json -d 'For programs'
complete -c novpn -n '__novpn_in status' -l dot -d 'As a graph for graphviz'
complete -c novpn -n '__novpn_in explain' -l pid -xa '(__fish_complete_pids)' -d 'The process whose class is meant'
complete -c novpn -n '__novpn_in plan' -l config -rF -d 'Plan with this file'
complete -c novpn -n '__novpn_in check' -F
complete -c novpn -n '__novpn_in down' -l force -d 'Do it here, with no agent running'
