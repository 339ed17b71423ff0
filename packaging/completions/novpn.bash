# bash completion for novpn(1)

_novpn_classes() {
    novpn status --json 2>/dev/null | grep -o '"name":"[a-z][a-z0-9_]*","table"' | cut -d'"' -f4
}

_novpn() {
    local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD - 1]} command='' i
    COMPREPLY=()
    for ((i = 1; i < COMP_CWORD; i++)); do
        case ${COMP_WORDS[i]} in
        --runtime-dir) ((i++)) ;;
        -*) ;;
        *) command=${COMP_WORDS[i]}; break ;;
        esac
    done
    case $previous in
    --runtime-dir) mapfile -t COMPREPLY < <(compgen -d -- "$current"); return ;;
    --config) mapfile -t COMPREPLY < <(compgen -f -- "$current"); return ;;
    --class) mapfile -t COMPREPLY < <(compgen -W "$(_novpn_classes)" -- "$current"); return ;;
    --pid) mapfile -t COMPREPLY < <(compgen -W "$(cd /proc && echo [0-9]*)" -- "$current"); return ;;
    --for) return ;;
    esac
    local options='--help --runtime-dir' words=''
    case $command in
    '')
        options+=' --version'
        words='run add remove off on status watch explain plan doctor apps desktop-entry check reload metrics down'
        ;;
    run)
        # What follows the program is the program's own.
        for ((i++; i < COMP_CWORD; i++)); do
            case ${COMP_WORDS[i]} in
            --class | --runtime-dir) ((i++)) ;;
            --) ((i++)); break ;;
            -*) ;;
            *) break ;;
            esac
        done
        if ((i < COMP_CWORD)) && declare -F _command_offset >/dev/null; then
            _command_offset "$i"
            return
        fi
        [[ $current = -* ]] || mapfile -t COMPREPLY < <(compgen -c -- "$current")
        options+=' --class --anyway --shell'
        ;;
    add) options+=' --class'; words=$(cd /proc && echo [0-9]*) ;;
    remove) words=$(cd /proc && echo [0-9]*) ;;
    off) options+=' --for'; words=$(_novpn_classes) ;;
    on) words=$(_novpn_classes) ;;
    status) options+=' --json --dot' ;;
    watch | doctor | apps) options+=' --json' ;;
    desktop-entry) options+=' --class'; words=$(novpn apps 2>/dev/null | cut -d' ' -f1) ;;
    explain) options+=' --json --class --pid' ;;
    plan) options+=' --json --config' ;;
    check) mapfile -t COMPREPLY < <(compgen -f -- "$current") ;;
    down) options+=' --force' ;;
    esac
    if [[ $current = -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$options" -- "$current")
    elif [[ -n $words ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$words" -- "$current")
    fi
}
complete -F _novpn novpn
