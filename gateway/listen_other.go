//go:build !unix

package gateway

import (
	"io/fs"
	"os"
)

// Elsewhere there is no service manager that passes sockets, and files have no such
// permissions.

func restrictSocket(uintptr, fs.FileMode) {}

func closeOnExec(int) {}

func listens(*os.File) bool { return false }
