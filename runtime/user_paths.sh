# For scripts that change to the project's folder: the values of path options stay
# relative to the folder in which the script was typed.
#   use_user_paths "--list --report" "$@"     sets the array `options`
# A value of --dataset is a path only if there is such a file.
use_user_paths() {
    local names=" $1 " previous= option name value
    shift
    options=()
    for option in "$@"; do
        name=${option%%=*} value=${option#*=}
        if [[ $names == *" $previous "* || ($previous == --dataset && -f $option) ]]; then
            option=$(realpath -m -- "$option")
        elif [[ $option == *=* ]] &&
            [[ $names == *" $name "* || ($name == --dataset && -f $value) ]]; then
            option=$name=$(realpath -m -- "$value")
        fi
        options+=("$option")
        previous=$option
    done
}
