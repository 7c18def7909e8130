// There are mail servers whose certificate has a negative serial number. Those who have a TLSA
// record for it can be reached only if it can be read; nothing else is made of the number.
//
//go:debug x509negativeserial=1

// Command gateway is Penstock: an edge mail gateway that is extended with WebAssembly. It
// is the one place that knows all packages; it reads the configuration, builds the parts
// and wires them together.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"
)

// Exit codes, as docs/operations.md lists them.
const (
	exitOK      = 0
	exitProblem = 1 // what was asked for cannot be done or was found wrong
	exitUsage   = 2 // the command line makes no sense
	exitAdmin   = 3 // a running gateway was not reached, or did not let us in
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// The first signal asks for an end in good order. A second one finds the default again,
	// and ends the program where it stands.
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// errReported ends the program with exitProblem; what is wrong has been printed.
var errReported = errors.New("reported")

// usageError is an error of the command line.
type usageError struct{ error }

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := newRoot()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	switch {
	case err == nil:
		return exitOK
	case errors.Is(err, errReported):
		return exitProblem
	}
	if status, ok := errors.AsType[exitStatus](err); ok {
		return int(status)
	}
	fmt.Fprintln(stderr, "gateway:", printableLines(err.Error()))
	if _, ok := errors.AsType[usageError](err); ok {
		return exitUsage
	}
	if notLetIn(err) {
		return exitAdmin
	}
	return exitProblem
}

func newRoot() *cobra.Command {
	root := group(&cobra.Command{
		Use:   "gateway",
		Short: "An edge mail gateway that is extended with WebAssembly",
		Long: `Penstock stands in front of a mail server, takes mail in over SMTP, asks sandboxed
filters at every stage, and hands what they let through to the server behind it.`,
		Example: `  gateway demo                       see it work on this machine, nothing to set up
  gateway check -c penstock.yaml     is the configuration right?
  gateway serve -c penstock.yaml     run
  gateway filter new greet           begin a filter of your own
  gateway filter push greet.wasm     put it into the gateway that runs`,
		SilenceErrors: true,
		SilenceUsage:  true,
	})
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.AddCommand(newServe(), newCheck(), newDemo(), newFilter(), newUser(), newToken(), newQueue(), newTLSRPT(), newDKIM(), newStore(), newMX(), newStatus(), newVersion(), newCompile())
	return root
}

func newVersion() *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Print the version",
		Example: "  gateway version",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(cmd.OutOrStdout(), versionText())
			return err
		},
	}
}

// versionText is what the build knows of itself.
func versionText() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "penstock (unknown build)"
	}
	text := "penstock " + info.Main.Version
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && len(s.Value) >= 12 {
			text += " " + s.Value[:12]
		}
	}
	return text + " " + info.GoVersion
}

// noArgs and rangeArgs make a wrong number of arguments an error of usage.
func noArgs(cmd *cobra.Command, args []string) error { return rangeArgs(0, 0)(cmd, args) }

func rangeArgs(least, most int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) >= least && len(args) <= most {
			return nil
		}
		return usageError{fmt.Errorf("%s: %d arguments, the usage is: %s", cmd.CommandPath(), len(args), cmd.UseLine())}
	}
}

// group makes cmd one that only holds others: alone it prints its help, and a word that is
// none of them is an error of usage.
func group(cmd *cobra.Command) *cobra.Command {
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return nil
		}
		text := fmt.Sprintf("%s has no command %q", cmd.CommandPath(), args[0])
		if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
			text += fmt.Sprintf("; did you mean %q?", near[0])
		}
		return usageError{errors.New(text + " See " + cmd.CommandPath() + " --help")}
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	cmd.SuggestionsMinimumDistance = 2
	return cmd
}
