package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"github.com/penstock/penstock/internal/config"
	"github.com/penstock/penstock/store"
)

// storecmd.go: what is done to a whole store at once. A store in a folder belongs to one
// process, so that the gateway must be stopped; one in a database may be in use.

func newStore() *cobra.Command {
	cmd := group(&cobra.Command{
		Use:   "store",
		Short: "Check the store, and move it as one file",
		Long: `Works on the store that the configuration names. Stop the gateway first if it is a folder
(driver: embedded); a database may be in use.

An export is a tar archive: each message as a file that mail programs read, beside what is
known of it. It has the certificates' private keys as they are: keep it as safe as those.`,
		Example: `  gateway store check  -c penstock.yaml
  gateway store export -c penstock.yaml backup.tar
  gateway store import -c other.yaml    backup.tar     from a folder into a database, or back`,
	})
	cmd.AddCommand(newStoreCheck(), newStoreExport(), newStoreImport())
	return cmd
}

func newStoreCheck() *cobra.Command {
	var flags configFlags
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Read all that the store holds, and say what is broken",
		Long: `Reads every message, module, file and value, with their checksums, and prints what cannot be
read. It mends nothing. Exits 1 if something is broken.`,
		Example: `  gateway store check -c /etc/penstock/penstock.yaml`,
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			broken := 0
			err := withStore(cmd, flags, false, func(ctx context.Context, s store.Store) error {
				moved, err := store.Check(ctx, s, func(what string, err error) {
					broken++
					fmt.Fprintf(cmd.ErrOrStderr(), "%s: %s\n", printableLines(what), printableLines(err.Error()))
				})
				if err == nil {
					fmt.Fprintf(cmd.OutOrStdout(), "%s; %d broken\n", contents(moved), broken)
				}
				return err
			})
			if err == nil && broken > 0 {
				return errReported
			}
			return err
		},
	}
	flags.add(cmd)
	return cmd
}

func newStoreExport() *cobra.Command {
	var flags configFlags
	cmd := &cobra.Command{
		Use:   "export FILE",
		Short: "Write all that the store holds into a tar archive",
		Long: `Writes messages, modules, files and values into a new FILE, or to standard output if it is -.
A message that cannot be read is left out and named at the end; the exit code is 1 then. The
store is left as it is: do not let two gateways deliver the same messages.`,
		Example: `  gateway store export -c penstock.yaml backup.tar
  gateway store export -c penstock.yaml - | zstd > backup.tar.zst`,
		Args: rangeArgs(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return withStore(cmd, flags, false, func(ctx context.Context, s store.Store) error {
				var moved store.Moved
				export := func(w io.Writer) (err error) {
					moved, err = store.Export(ctx, s, w)
					return err
				}
				var err error
				if args[0] == "-" {
					err = export(cmd.OutOrStdout())
				} else {
					err = writeNew(args[0], export)
				}
				if err == nil || errors.Is(err, store.ErrCorrupt) {
					fmt.Fprintln(cmd.ErrOrStderr(), "exported", contents(moved))
				}
				return err
			})
		},
	}
	flags.add(cmd)
	return cmd
}

func newStoreImport() *cobra.Command {
	var flags configFlags
	cmd := &cobra.Command{
		Use:   "import FILE",
		Short: "Take in what export wrote",
		Long: `Reads an archive of gateway store export, or standard input if FILE is -, into the store that
the configuration names. What is there already stays as it is, so an import that was cut off
can be done again.`,
		Example: `  gateway store import -c penstock.yaml backup.tar
  zstdcat backup.tar.zst | gateway store import -c penstock.yaml -`,
		Args: rangeArgs(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			in := cmd.InOrStdin()
			if args[0] != "-" {
				f, err := os.Open(args[0])
				if err != nil {
					return err
				}
				defer f.Close()
				in = f
			}
			return withStore(cmd, flags, true, func(ctx context.Context, s store.Store) error {
				moved, err := store.Import(ctx, s, in)
				text := "imported " + contents(moved)
				if moved.Present > 0 {
					text += fmt.Sprintf("; %d were there", moved.Present)
				}
				fmt.Fprintln(cmd.ErrOrStderr(), text)
				return err
			})
		},
	}
	flags.add(cmd)
	return cmd
}

// withStore calls do with the store of a configuration, which may be made if create is set.
func withStore(cmd *cobra.Command, flags configFlags, create bool, do func(context.Context, store.Store) error) (err error) {
	overrides, err := flags.overrides()
	if err != nil {
		return err
	}
	cfg, problems := config.Load(flags.file, os.Environ(), overrides)
	if cfg == nil {
		printProblems(cmd.ErrOrStderr(), problems)
		return errReported
	}
	switch cfg.Store.Driver {
	case config.StoreNone:
		return fmt.Errorf("%s names no store; set store.driver to embedded or postgres", flags.file)
	case config.StoreEmbedded:
		// To open what is not there makes it, and hides that the path is wrong.
		if _, err := os.Stat(string(cfg.Store.Path)); !create && err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("there is no store at %s; store.path names its folder", cfg.Store.Path)
			}
			return err
		}
	}
	log := slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	s, err := openStore(cmd.Context(), cfg, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	return do(cmd.Context(), s)
}

// contents says in words what was moved.
func contents(m store.Moved) string {
	return fmt.Sprintf("messages %d (%d octets), modules %d under %d names, files %d, values %d",
		m.Messages, m.Octets, m.Modules, m.Names, m.Files, m.Values)
}
