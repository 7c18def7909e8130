package main

import (
	"context"
	"fmt"
	"os"
	"runtime"

	"github.com/spf13/cobra"

	"github.com/penstock/penstock/wasmhost"
)

// compile.go is the process that compiles one module, which this program starts of itself. See
// wasmhost.Options.Compiler.

const compileCommand = "compile-module"

// compiler returns the command of that process. In Linux it is the file that runs now, also
// after an update has put another in its place, whose code this process could not use.
func compiler() ([]string, error) {
	self := "/proc/self/exe"
	if _, err := os.Stat(self); err != nil || runtime.GOOS != "linux" {
		if self, err = os.Executable(); err != nil {
			return nil, fmt.Errorf("find the program's own file, to compile filters with: %w", err)
		}
	}
	return []string{self, compileCommand}, nil
}

// newRuntime is wasmhost.New with the compiler.
func newRuntime(ctx context.Context, o wasmhost.Options) (_ *wasmhost.Runtime, err error) {
	if o.Compiler, err = compiler(); err != nil {
		return nil, err
	}
	return wasmhost.New(ctx, o)
}

// exitStatus ends the program with that status, and says nothing.
type exitStatus int

func (s exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(s)) }

func newCompile() *cobra.Command {
	return &cobra.Command{
		Use:    compileCommand,
		Short:  "Compile a module for the gateway that started this",
		Hidden: true,
		Args:   cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if status := wasmhost.CompileMain(args, cmd.InOrStdin(), cmd.OutOrStdout()); status != exitOK {
				return exitStatus(status)
			}
			return nil
		},
	}
}
