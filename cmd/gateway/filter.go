package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/penstock/penstock/guest-sdk/manifest"
	"github.com/penstock/penstock/policy/guest"
	"github.com/penstock/penstock/wasmhost"
)

func newFilter() *cobra.Command {
	cmd := group(&cobra.Command{
		Use:   "filter",
		Short: "Make filters, try them out, and put them into a running gateway",
		Example: `  gateway filter new greet                        begin a filter
  gateway filter build greet                      compile it to greet/greet.wasm
  gateway filter inspect greet/greet.wasm         what is in it?
  gateway filter test greet/greet.wasm mail.eml   what would it say to this message?
  gateway filter push greet/greet.wasm            let the running gateway use it
  gateway filter show greet                       what does it do there, and what does it cost?`,
	})
	cmd.AddCommand(newFilterNew(), newFilterBuild(), newFilterInspect(), newFilterTest(),
		newFilterPush(), newFilterRollback(), newFilterList(), newFilterShow())
	return cmd
}

func newFilterInspect() *cobra.Command {
	var configText string
	cmd := &cobra.Command{
		Use:   "inspect FILE.wasm",
		Short: "Say what a filter is, and whether it would be taken",
		Long: `Checks the module as serve does, starts it once with the configuration given, and prints
what it imports, what it exports, what it asks the operator for and at which stages it wants
to be asked.`,
		Example: `  gateway filter inspect greet.wasm
  gateway filter inspect rcptguard.wasm --config '{"blocked": ["spam.example"]}'`,
		Args: rangeArgs(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return inspect(cmd.Context(), args[0], configText, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	cmd.Flags().StringVar(&configText, "config", "{}", "the filter's configuration as `JSON`")
	return cmd
}

func inspect(ctx context.Context, file, configText string, stdout, stderr io.Writer) error {
	rt, module, err := loadFile(ctx, file, stderr)
	if err != nil {
		return err
	}
	defer rt.Close(ctx)
	info := module.Info()
	fmt.Fprintf(stdout, "%s: a filter, %d octets\n", file, info.Size)
	fmt.Fprintf(stdout, "memory   %d KiB at start", info.Memory*64)
	if info.MemoryMax > 0 {
		fmt.Fprintf(stdout, ", at most %d KiB", info.MemoryMax*64)
	}
	fmt.Fprintf(stdout, "\nimports  %s\nexports  %s\n", printable(strings.Join(info.Imports, " ")), printable(strings.Join(info.Exports, " ")))
	m, err := manifest.Parse(info.Manifest)
	if err != nil {
		return err
	}
	fmt.Fprintf(stdout, "asks for %s\n", capabilityList(m.Capabilities))
	if len(m.Optional) > 0 {
		fmt.Fprintf(stdout, "may use  %s\n", capabilityList(m.Optional))
	}
	f, err := module.Filter(ctx, wasmhost.FilterOptions{Config: []byte(configText), Ready: -1, Grants: guest.Everything()})
	if err != nil {
		return err
	}
	defer f.Close()
	fmt.Fprintf(stdout, "stages   %s\n", f.Stages())
	return nil
}

// loadFile compiles a module of its own runtime; what the guest logs goes to stderr.
func loadFile(ctx context.Context, file string, stderr io.Writer) (*wasmhost.Runtime, *wasmhost.Module, error) {
	wasm, err := readRegular(file, wasmhost.MaxModule)
	if err != nil {
		return nil, nil, err
	}
	log := slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	rt, err := newRuntime(ctx, wasmhost.Options{Log: log})
	if err != nil {
		return nil, nil, err
	}
	name := strings.TrimSuffix(filepath.Base(file), ".wasm")
	module, err := rt.Load(ctx, name, wasm)
	if err != nil {
		return nil, nil, errors.Join(err, rt.Close(ctx))
	}
	return rt, module, nil
}

func newFilterNew() *cobra.Command {
	return &cobra.Command{
		Use:   "new DIR",
		Short: "Begin a filter: a folder with a first filter, its test and the SDK",
		Long: `Makes DIR with main.go, a test, go.mod, a manifest, a sample message and, under .penstock, the SDK's
sources, so that it builds without network. The test reaches one module of Go's project
(golang.org/x/net), which the first go test fetches if it is not there.`,
		Example: `  gateway filter new greet
  cd greet && gateway filter build && gateway filter test greet.wasm sample.eml`,
		Args: rangeArgs(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error { return newProject(args[0], cmd.OutOrStdout()) },
	}
}

func newFilterBuild() *cobra.Command {
	var out string
	cmd := &cobra.Command{
		Use:   "build [DIR]",
		Short: "Compile a filter written in Go",
		Long: `Compiles the package main in DIR (default: here) with the Go toolchain, as
  GOOS=wasip1 GOARCH=wasm go build -buildmode=c-shared
does, and checks the result. What filter.json says in DIR becomes the module's manifest: the
capabilities that it asks the operator for, above all. A folder without go.mod gets one. The SDK's sources are put
beside it under .penstock, so that no network is needed.`,
		Example: `  gateway filter build
  gateway filter build greet -o /etc/penstock/filters/greet.wasm`,
		Args: rangeArgs(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			dir := "."
			if len(args) == 1 {
				dir = args[0]
			}
			return buildProject(cmd.Context(), dir, out, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	cmd.Flags().StringVarP(&out, "output", "o", "", "write the module to `FILE` (default: DIR/NAME.wasm)")
	return cmd
}
