//go:build !linux

package lab

import (
	"context"
	"net/netip"
	"os/exec"
)

// isolate: only Linux has namespaces.
func isolate(context.Context, *exec.Cmd) error { return errNoNamespace }

func furnish() error { return nil }

func assign(netip.Addr) error { return errNoNamespace }

func alone() bool { return true }

func cover(string) error { return errNoNamespace }
