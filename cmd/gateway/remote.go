package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/penstock/penstock/admin/api"
	"github.com/penstock/penstock/admin/client"
	"github.com/penstock/penstock/internal/config"
	"github.com/penstock/penstock/wasmhost"
)

// remote.go: the commands that act on a running gateway, through its admin API.

// tokenVariable is where a command looks for its token.
const tokenVariable = "PENSTOCK_TOKEN"

// remote is the flags of such a command.
type remote struct {
	address   string
	tokenFile string
	json      bool
}

func (r *remote) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&r.address, "admin", client.DefaultAddress, "the gateway's admin API: `address`, unix:/path or URL")
	f.StringVar(&r.tokenFile, "token-file", "", "`file` that holds the token; without it "+tokenVariable+" does")
	f.BoolVar(&r.json, "json", false, "print JSON")
}

// connect returns a client with the token.
func (r *remote) connect() (*client.Client, error) {
	token := os.Getenv(tokenVariable)
	if r.tokenFile != "" {
		text, err := readRegular(r.tokenFile, 4096)
		if err != nil {
			return nil, err
		}
		token = string(text)
	}
	token = strings.TrimSpace(token)
	if token == "" {
		return nil, fmt.Errorf("no token: set %s, or name a file that holds it with --token-file; gateway token new makes one", tokenVariable)
	}
	c, err := client.New(r.address, token, client.Options{})
	if err != nil {
		return nil, usageError{err}
	}
	return c, nil
}

// print prints v as JSON, or lets table print it.
func (r *remote) print(w io.Writer, v any, table func(w io.Writer)) error {
	if r.json {
		text, err := json.MarshalIndent(v, "", "  ")
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(w, "%s\n", escaped(text))
		return err
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	table(tw)
	return tw.Flush()
}

// escaped is JSON whose texts have no character that a terminal would obey. The encoder escapes
// those below a space alone; the others, such as U+009B, can stand in texts only.
func escaped(text []byte) []byte {
	out := make([]byte, 0, len(text))
	for _, r := range string(text) {
		if r < utf8.RuneSelf && r != 0x7f || unicode.IsPrint(r) {
			out = utf8.AppendRune(out, r)
			continue
		}
		for _, unit := range utf16.AppendRune(nil, r) {
			out = fmt.Appendf(out, `\u%04x`, unit)
		}
	}
	return out
}

// notLetIn tells whether the gateway was not reached, or would not have us.
func notLetIn(err error) bool {
	if e, ok := errors.AsType[*api.Error](err); ok {
		switch e.Code {
		case api.CodeNoToken, api.CodeForbidden, api.CodeTooMany, api.CodeWrongHost:
			return true
		}
	}
	return errors.Is(err, client.ErrUnreachable)
}

func newStatus() *cobra.Command {
	var r remote
	cmd := &cobra.Command{
		Use:     "status",
		Short:   "Show what a running gateway is doing",
		Long:    `Asks the gateway's admin API. The token needs the role read.`,
		Example: `  PENSTOCK_TOKEN=penstock_... gateway status`,
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := r.connect()
			if err != nil {
				return err
			}
			defer c.Close()
			s, err := c.Status(cmd.Context())
			if err != nil {
				return err
			}
			return r.print(cmd.OutOrStdout(), s, func(w io.Writer) { printStatus(w, s) })
		},
	}
	r.add(cmd)
	return cmd
}

// printStatus prints a block for each kind of thing, with an empty line between them.
func printStatus(w io.Writer, s api.Status) {
	line := func(words ...any) {
		for i, word := range words {
			if i > 0 {
				fmt.Fprint(w, "\t")
			}
			fmt.Fprint(w, printable(fmt.Sprint(word)))
		}
		fmt.Fprintln(w)
	}
	state := map[bool]string{true: "takes mail", false: "takes no mail"}[s.Ready]
	fmt.Fprintf(w, "%s, %s, %s, load %s, since %s\n\n", printable(s.Hostname), printable(s.Version), state, printable(s.Load), s.Started.Local().Format(time.DateTime))
	line("LISTENER", "ADDRESS", "TLS", "STATE", "CONNECTIONS", "TURNED AWAY")
	for _, l := range s.Listeners {
		line(l.Name, strings.Join(l.Addresses, " "), l.TLS, map[bool]string{true: "open", false: "closed"}[l.Open], l.Connections, l.TurnedAway)
	}
	fmt.Fprintln(w)
	line("SESSIONS", "LIMITED", "EARLY TALKERS", "BAD PROXY", "LOGINS", "FAILED")
	line(s.Counts.Sessions, s.Counts.Limited, s.Counts.EarlyTalkers, s.Counts.BadProxy, s.Counts.Logins, s.Counts.LoginsFailed)
	fmt.Fprintln(w)
	line("RELAYED", "REFUSED", "DISCARDED", "DUPLICATES")
	line(s.Counts.Relayed, s.Counts.Refused, s.Counts.Discarded, s.Counts.Duplicates)
	fmt.Fprintln(w)
	line("BACKEND", "ADDRESS", "STATE", "IDLE", "BUSY", "WAITING", "TRANSACTIONS")
	for _, b := range s.Backends {
		for i, e := range b.Endpoints {
			up := "up"
			if !e.Up {
				up = "down: " + e.Error
			}
			if i == 0 {
				line(b.Name, e.Address, up, b.Idle, b.Busy, b.Waiting, b.Transactions)
			} else {
				line("", e.Address, up)
			}
		}
	}
	if len(s.Chains) > 0 {
		fmt.Fprintln(w)
		line("CHAIN", "FILTER", "MODULE", "DIGEST", "ON ERROR", "STATE")
	}
	for _, c := range s.Chains {
		for _, f := range c.Filters {
			line(c.Name, f.Name, f.Module, shortDigest(f.Digest), f.OnError, brokenText(f.Broken))
		}
	}
	if len(s.Certificates) > 0 {
		fmt.Fprintln(w)
		line("CERTIFICATE", "EXPIRES")
	}
	for _, c := range s.Certificates {
		line(strings.Join(c.Names, " "), c.Expires.Local().Format(time.DateTime))
	}
	if len(s.Managed) > 0 {
		fmt.Fprintln(w)
		line("OBTAINED NAME", "NEXT TRY", "STATE")
	}
	for _, m := range s.Managed {
		next := "-"
		if m.NextTry != nil {
			next = m.NextTry.Local().Format(time.DateTime)
		}
		line(m.Name, next, cmp.Or(m.LastError, "fine"))
	}
	if len(s.Nodes) > 0 {
		fmt.Fprintln(w)
		line("NODE", "VERSION", "SINCE", "HEARD OF")
	}
	for _, n := range s.Nodes {
		name := n.Name
		if n.Self {
			name += " (this one)"
		}
		line(name, n.Version, n.Started.Local().Format(time.DateTime), n.Seen.Local().Format(time.DateTime))
	}
}

// shortDigest is enough of a digest to tell a few apart.
func shortDigest(d string) string {
	if d == "" {
		return "-"
	}
	return d[:min(len(d), len(digestPrefix)+12)]
}

func newFilterPush() *cobra.Command {
	var r remote
	var name, expect string
	var absent bool
	cmd := &cobra.Command{
		Use:   "push FILE.wasm",
		Short: "Put a filter into a running gateway",
		Long: `Sends the module to the gateway's admin API. The gateway checks it as at its start, with
the configuration of each chain that names it, and keeps it as NAME.wasm in filters.dir. The
next session runs it; sessions that run keep the one they began with. The module that was
there is kept for gateway filter rollback. If anything is wrong nothing changes.
The token needs the role upload.`,
		Example: `  gateway filter push greet.wasm
  gateway filter push build/out.wasm --name greet --token-file ~/.penstock-token`,
		Args: rangeArgs(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if name == "" {
				name = strings.TrimSuffix(filepath.Base(args[0]), ".wasm")
			}
			if !config.ValidName(name) {
				return usageError{fmt.Errorf("%q cannot be the name of a filter; choose one with --name", name)}
			}
			cond, err := condition(expect, absent)
			if err != nil {
				return err
			}
			wasm, err := readRegular(args[0], wasmhost.MaxModule)
			if err != nil {
				return err
			}
			return r.change(cmd, "pushed", func(ctx context.Context, c *client.Client) (api.Change, error) {
				return c.Push(ctx, name, wasm, cond)
			})
		},
	}
	r.add(cmd)
	cmd.Flags().StringVar(&name, "name", "", "the filter's `NAME` in the configuration (default: the file's, without .wasm)")
	cmd.Flags().StringVar(&expect, "expect", "", "only if the module that is there has this `digest`")
	cmd.Flags().BoolVar(&absent, "new", false, "only if there is none of this name")
	return cmd
}

// condition makes a condition of the flags.
func condition(expect string, absent bool) (api.Condition, error) {
	if expect == "" {
		return api.Condition{Absent: absent}, nil
	}
	d, err := parseDigest(expect)
	if err != nil {
		return api.Condition{}, usageError{fmt.Errorf("--expect: %w", err)}
	}
	return api.Condition{Digest: d.String(), Absent: absent}, nil
}

func newFilterRollback() *cobra.Command {
	var r remote
	var to, expect string
	cmd := &cobra.Command{
		Use:   "rollback NAME",
		Short: "Bring the module back that a push replaced",
		Long: `Has the running gateway take the newest version that it kept of the filter, or the one
named with --to; gateway filter list --json has them all. The module that is there is marked
as withdrawn, so that a second rollback goes one further back. The token needs the role upload.`,
		Example: `  gateway filter rollback greet`,
		Args:    rangeArgs(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cond, err := condition(expect, false)
			if err != nil {
				return err
			}
			if to != "" {
				d, err := parseDigest(to)
				if err != nil {
					return usageError{fmt.Errorf("--to: %w", err)}
				}
				to = d.String()
			}
			return r.change(cmd, "rolled back", func(ctx context.Context, c *client.Client) (api.Change, error) {
				return c.Rollback(ctx, args[0], to, cond)
			})
		},
	}
	r.add(cmd)
	cmd.Flags().StringVar(&to, "to", "", "the `digest` of the version wanted")
	cmd.Flags().StringVar(&expect, "expect", "", "only if the module that is there has this `digest`")
	return cmd
}

// change makes a change and prints what came of it.
func (r *remote) change(cmd *cobra.Command, word string, do func(context.Context, *client.Client) (api.Change, error)) error {
	c, err := r.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	ch, err := do(cmd.Context(), c)
	if err != nil {
		return err
	}
	return r.print(cmd.OutOrStdout(), ch, func(w io.Writer) {
		fmt.Fprintf(w, "%s %s: %s, %d octets\n", printable(ch.Name), word, printable(ch.Digest), ch.Size)
		if ch.OldDigest != "" {
			fmt.Fprintf(w, "before: %s\n", printable(ch.OldDigest))
		}
		if len(ch.Chains) == 0 {
			fmt.Fprintln(w, "no chain names it")
			return
		}
		fmt.Fprintf(w, "the next session runs it, in %s\n", printable(strings.Join(ch.Chains, ", ")))
	})
}

func newFilterList() *cobra.Command {
	var r remote
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List the filters of a running gateway",
		Long:    `Lists the modules in filters.dir and those that chains name. The token needs the role read.`,
		Example: `  gateway filter list --json`,
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := r.connect()
			if err != nil {
				return err
			}
			defer c.Close()
			list, err := c.Filters(cmd.Context())
			if err != nil {
				return err
			}
			return r.print(cmd.OutOrStdout(), api.Filters{Filters: list}, func(w io.Writer) { printFilters(w, list) })
		},
	}
	r.add(cmd)
	return cmd
}

func printFilters(w io.Writer, list []api.Filter) {
	fmt.Fprintln(w, "NAME\tFROM\tDIGEST\tSIZE\tVERSIONS\tASKS FOR\tCHAINS")
	for _, f := range list {
		chains := "-"
		if len(f.Chains) > 0 {
			chains = strings.Join(f.Chains, ", ")
		}
		if f.Running != "" && f.Running != f.Digest {
			chains += " (running " + shortDigest(f.Running) + ")"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%d\t%s\t%s\n", printable(f.Name), printable(f.Source), printable(shortDigest(f.Digest)), f.Size, len(f.Versions), capabilityList(f.Asks), printable(chains))
	}
}
