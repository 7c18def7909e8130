//go:build !linux

package lab

import (
	"context"
	"os/exec"
)

// isolate: only Linux has namespaces.
func isolate(context.Context, *exec.Cmd) error { return errNoNamespace }

func furnish() error { return nil }

func cover(string) error { return errNoNamespace }
