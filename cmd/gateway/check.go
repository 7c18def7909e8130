package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"

	"github.com/spf13/cobra"

	"github.com/penstock/penstock/certs"
	"github.com/penstock/penstock/internal/config"
	"github.com/penstock/penstock/wasmhost"
)

func newCheck() *cobra.Command {
	var flags configFlags
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Check a configuration, and print every problem at once",
		Long: `Reads the configuration as serve would, opens the certificates, and starts every filter
with its configuration. It listens on nothing, connects to nothing and writes nothing.
Exits 0 if serve would start, with warnings or without, else 1.`,
		Example: `  gateway check -c /etc/penstock/penstock.yaml`,
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return check(cmd.Context(), flags, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	flags.add(cmd)
	return cmd
}

func check(ctx context.Context, flags configFlags, stdout, stderr io.Writer) error {
	cfg, problems, err := flags.load(stderr)
	if err != nil {
		return err
	}
	if cfg != nil {
		problems = append(problems, tryParts(ctx, cfg)...)
	}
	printProblems(stderr, problems)
	if n := len(problems.Errors()); n > 0 {
		fmt.Fprintf(stderr, "%d to mend\n", n)
		return errReported
	}
	fmt.Fprintf(stdout, "%s: fine, %d listeners, %d routes, %d backends, %d chains\n",
		flags.file, len(cfg.Listeners), len(cfg.Routes), len(cfg.Backends), len(cfg.Filters.Chains))
	return nil
}

// tryParts builds what can be built without a trace: certificates, backends' settings and
// filters.
func tryParts(ctx context.Context, cfg *config.Config) config.Problems {
	var problems config.Problems
	quiet := slog.New(slog.DiscardHandler)
	o := certOptions(cfg, quiet)
	o.Dir = "" // keep nothing
	if _, err := certs.New(o); err != nil {
		problems = append(problems, cfg.Problem("certificates", oneLine(err)))
	}
	_, more := backends(cfg)
	problems = append(problems, more...)

	rt, err := wasmhost.New(ctx, wasmhost.Options{})
	if err != nil {
		return append(problems, cfg.Problem("filters", oneLine(err)))
	}
	set, more := loadChains(ctx, rt, cfg)
	if set != nil {
		set.close()
	}
	problems = append(problems, more...)
	if err := rt.Close(ctx); err != nil && !errors.Is(err, context.Canceled) {
		problems = append(problems, cfg.Problem("filters", oneLine(err)))
	}
	return problems
}
