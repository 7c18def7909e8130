package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/penstock/penstock/certs"
	"github.com/penstock/penstock/internal/config"
	"github.com/penstock/penstock/store/postgres"
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
	overrides, err := flags.overrides()
	if err != nil {
		return err
	}
	cfg, problems := config.Read(flags.file, os.Environ(), overrides)
	if cfg != nil {
		known := problems.Errors()
		for _, p := range tryParts(ctx, cfg) {
			if !follows(p, known) {
				problems = append(problems, p)
			}
		}
	}
	printProblems(stderr, problems.Sorted(flags.file))
	if n := len(problems.Errors()); n > 0 {
		fmt.Fprintf(stderr, "%d to mend\n", n)
		return errReported
	}
	fmt.Fprintf(stdout, "%s: fine (listeners %d, routes %d, backends %d, chains %d)\n",
		flags.file, len(cfg.Listeners), len(cfg.Routes), len(cfg.Backends), len(cfg.Filters.Chains))
	return nil
}

// follows tells whether a problem may be due to one that is known: what is missing for that is
// then said twice. It is so if one key is in the other.
func follows(p config.Problem, known config.Problems) bool {
	inside := func(key, outer string) bool {
		rest, ok := strings.CutPrefix(key, outer)
		return ok && (rest == "" || rest[0] == '.' || rest[0] == '[')
	}
	return slices.ContainsFunc(known, func(k config.Problem) bool {
		return k.Key != "" && (inside(k.Key, p.Key) || inside(p.Key, k.Key))
	})
}

// tryParts builds what can be built without a trace: certificates, backends' settings,
// listeners and filters. Of a configuration that is broken already it tries the parts that were
// read, so that one mistake does not hide another.
func tryParts(ctx context.Context, cfg *config.Config) config.Problems {
	cfg.Filters.Chains = readFilters(cfg.Filters.Chains)
	_, problems := backends(cfg)
	problems = append(problems, tryListeners(cfg)...)
	_, wrong := signingKeys(cfg)
	problems = append(problems, wrong...)
	problems = append(problems, tryCertificates(cfg)...)
	problems = append(problems, checkAdmin(cfg)...)
	problems = append(problems, tryStore(cfg)...)
	rt, err := newRuntime(ctx, wasmhost.Options{})
	if err != nil {
		return append(problems, cfg.Problem("filters", oneLine(err)))
	}
	set, more := loadChains(ctx, rt, newLedger(slog.New(slog.DiscardHandler), nil), nil, cfg)
	if set != nil {
		set.close()
	}
	problems = append(problems, more...)
	if err := rt.Close(ctx); err != nil && !errors.Is(err, context.Canceled) {
		problems = append(problems, cfg.Problem("filters", oneLine(err)))
	}
	return problems
}

// tryListeners makes the listeners, opens the files that they and backends name, and reads the
// resolver's address.
func tryListeners(cfg *config.Config) config.Problems {
	d := newDoorman(slog.New(slog.DiscardHandler))
	list, problems := d.listeners(cfg)
	for i, l := range list {
		for j, a := range l.Addresses {
			if a.Network != "unix" || strings.HasPrefix(a.Address, "@") {
				continue
			}
			// It may be made for the service when that starts.
			if _, err := os.Stat(filepath.Dir(a.Address)); err != nil {
				problems = append(problems, cfg.Warning(addressKey(fmt.Sprintf("listeners[%d]", i), j, len(l.Addresses)), "no folder for the socket: "+err.Error()))
			}
		}
	}
	for name, b := range cfg.Backends {
		if l := recipients(b).List; l != nil {
			if err := l.Check(); err != nil {
				problems = append(problems, cfg.Problem("backends."+name+".recipients", oneLine(err)))
			}
		}
	}
	for i, l := range cfg.Listeners {
		file := d.users[l.Auth.Users.File]
		if file == nil {
			continue
		}
		key := fmt.Sprintf("listeners[%d].auth", i)
		for _, w := range file.Warnings() {
			problems = append(problems, cfg.Warning(key+".users", w))
		}
		for _, m := range l.Auth.Mechanisms {
			if lacking := file.Without(string(m)); len(lacking) > 0 {
				problems = append(problems, cfg.Warning(key+".mechanisms", fmt.Sprintf(
					"%s is not offered while %d users cannot use it, %s for one; gateway user add gives them what they need", m, len(lacking), lacking[0])))
			}
		}
	}
	_, more := readOutbound(cfg, nil)
	return append(problems, more...)
}

// tryStore reads the keys of a store, and its address. The database is not asked.
func tryStore(cfg *config.Config) config.Problems {
	if cfg.Store.Driver != config.StorePostgres || cfg.Store.Key == "" || cfg.Store.URL == "" {
		return nil // what is missing is reported
	}
	keys, err := readKeys(string(cfg.Store.Key))
	if err != nil {
		return config.Problems{cfg.Problem("store.key", oneLine(err))}
	}
	if err := (postgres.Options{URL: cfg.Store.URL, Keys: keys}).Validate(); err != nil {
		return config.Problems{cfg.Problem("store.url", oneLine(err))}
	}
	return nil
}

// tryCertificates opens the files that are named. Nothing is obtained.
func tryCertificates(cfg *config.Config) config.Problems {
	o, problems := certOptions(cfg, slog.New(slog.DiscardHandler))
	o.Dir, o.ACME = "", certs.ACME{} // keep nothing; what is wrong with names is reported
	if o.Hostname == "" {
		o.Hostname = "localhost" // its lack is reported; it changes nothing for the files
	}
	for _, f := range o.Files {
		if f.Cert == "" || f.Key == "" {
			return problems // reported too
		}
	}
	if _, err := certs.New(o); err != nil {
		problems = append(problems, certProblems(cfg, err)...)
	}
	return problems
}

// readFilters empties the places of filters whose module could not be read, and leaves the
// others where they are.
func readFilters(chains map[string][]config.Filter) map[string][]config.Filter {
	for _, list := range chains {
		for i := range list {
			if m := list[i].Module; !m.Builtin && m.File == "" {
				list[i].Module = config.Module{}
			}
		}
	}
	return chains
}

// certProblems puts what is wrong with certificates at their keys.
func certProblems(cfg *config.Config, err error) config.Problems {
	var problems config.Problems
	files, rest := certs.FileErrors(err)
	for _, f := range files {
		key := fmt.Sprintf("certificates.files[%d].cert", f.Index)
		if f.Key {
			key = fmt.Sprintf("certificates.files[%d].key", f.Index)
		}
		problems = append(problems, cfg.Problem(key, oneLine(f)))
	}
	if rest != nil {
		problems = append(problems, cfg.Problem("certificates", oneLine(rest)))
	}
	return problems
}
