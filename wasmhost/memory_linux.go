package wasmhost

import "golang.org/x/sys/unix"

// noReserve: address space that is never touched is not counted against the machine.
const noReserve = unix.MAP_NORESERVE
