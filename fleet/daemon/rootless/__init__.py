"""fleetd as an ordinary user: namespaces in which it is root, a way out of them, ports of the host that lead in.

Three processes outlive fleetd, as containers do:

    anchor    in the namespaces: holds them (user, mount, network), carries the bytes of published ports
    outside   in the host's, with the user's own rights: binds ports for the anchor, keeps slirp4netns or pasta running
    slirp4netns or pasta   the network namespace's only way to the outside, if one of them is installed

fleetd starts them when they are not there (``enter``), joins the anchor's namespaces and starts itself anew in them; from there
on it is root as far as the rest of fleet can tell. When it is stopped while no container runs, all of them end (``end``).
``exec_root/rootless`` (0700) holds their records and sockets:

    lock            held by fleetd, from before it joins the namespaces until it ends
    anchor.json     pid and start time of the anchor
    outside.json    the same of outside, what it uses for a network, and what is limited, in sentences
    outside.sock    the anchor asks outside for a bound socket here
    ports.sock      fleetd asks the anchor here to carry a container's ports
    cgroup.json     the control group that containers' are made in, or why there is none (``delegation``)
    resolv.conf     over /etc/resolv.conf in the namespaces, where a name server inside them is to be asked
    rootless.log    what the three say
"""
