//go:build unix

package gateway

import (
	"io/fs"
	"os"
	"syscall"
)

// restrictSocket sets the permissions that the file of a socket will have at most. Where
// the system has no such thing it fails, and they are set on the file alone.
func restrictSocket(fd uintptr, mode fs.FileMode) { syscall.Fchmod(int(fd), uint32(mode.Perm())) }

// closeOnExec keeps a descriptor from the processes that we start.
func closeOnExec(fd int) { syscall.CloseOnExec(fd) }

// listens tells whether f is a stream socket that takes connections.
func listens(f *os.File) bool {
	rc, err := f.SyscallConn()
	if err != nil {
		return false
	}
	kind, accepts := 0, 0
	var errKind, errAccepts error
	err = rc.Control(func(fd uintptr) {
		kind, errKind = syscall.GetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_TYPE)
		accepts, errAccepts = syscall.GetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_ACCEPTCONN)
	})
	return err == nil && errKind == nil && errAccepts == nil && kind == syscall.SOCK_STREAM && accepts != 0
}
