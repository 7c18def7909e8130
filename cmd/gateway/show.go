package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/penstock/penstock/admin/api"
)

// show.go: what filters do in a running gateway, and what it costs.

func newFilterShow() *cobra.Command {
	var r remote
	cmd := &cobra.Command{
		Use:   "show [NAME]",
		Short: "Show what filters do in a running gateway, and what it costs",
		Long: `Without a name, a line for each filter, by the name that its chain gives it; the one that
computes most comes first. With a name, what each version of it did at each hook: calls, how
long half of them and all but one in a hundred took, CPU time, verdicts, and failures by cause.
All figures count from the start of the gateway. The token needs the role read.`,
		Example: `  gateway filter show
  gateway filter show rcptguard
  gateway filter show rcptguard --json`,
		Args: rangeArgs(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := r.connect()
			if err != nil {
				return err
			}
			defer c.Close()
			a, err := c.Accounts(cmd.Context())
			if err != nil {
				return err
			}
			if len(args) == 0 {
				return r.print(cmd.OutOrStdout(), a, func(w io.Writer) { printAccounts(w, a.Filters) })
			}
			i := slices.IndexFunc(a.Filters, func(f api.FilterAccount) bool { return f.Name == args[0] })
			if i < 0 {
				return fmt.Errorf("no chain has run a filter called %s; gateway filter show names those that there are", printable(args[0]))
			}
			return r.print(cmd.OutOrStdout(), a.Filters[i], func(w io.Writer) { printAccount(w, a.Filters[i]) })
		},
	}
	r.add(cmd)
	return cmd
}

// row prints the cells of a table.
func row(w io.Writer, cells ...any) {
	var b strings.Builder
	for i, c := range cells {
		if i > 0 {
			b.WriteByte('\t')
		}
		b.WriteString(printable(fmt.Sprint(c)))
	}
	fmt.Fprintln(w, b.String())
}

func printAccounts(w io.Writer, list []api.FilterAccount) {
	row(w, "FILTER", "CPU", "TIME", "CALLS", "FAILED", "WAITED", "MEMORY", "INSTANCES", "STATE")
	for _, f := range list {
		t := f.Total
		row(w, f.Name, seconds(t.CPU), seconds(t.Time), t.Calls, t.Failed, seconds(t.Waited), kib(t.Memory), t.Instances, stateOf(f))
	}
}

// stateOf says whether a filter is well.
func stateOf(f api.FilterAccount) string {
	var hooks []string
	for _, b := range f.Broken {
		hooks = append(hooks, b.Chain+"/"+b.Hook)
	}
	return brokenText(hooks)
}

func brokenText(hooks []string) string {
	if len(hooks) == 0 {
		return "fine"
	}
	return "broken at " + strings.Join(hooks, ", ")
}

func kib(octets int64) string { return fmt.Sprintf("%d KiB", (octets+1023)>>10) }

func printAccount(w io.Writer, f api.FilterAccount) {
	for _, b := range f.Broken {
		fmt.Fprintf(w, "broken at %s in chain %s since %s: %d of %d calls failed, in %d networks; asked again at %s\n  %s: %s\n\n",
			printable(b.Hook), printable(b.Chain), b.Since.Local().Format(time.DateTime), b.Failures, b.Calls, b.Networks,
			b.NextProbe.Local().Format(time.TimeOnly), printable(b.Cause), printable(b.Error))
	}
	for i, v := range f.Versions {
		if i > 0 {
			fmt.Fprintln(w)
		}
		printVersion(w, f.Name, v)
	}
}

func printVersion(w io.Writer, name string, v api.VersionAccount) {
	until := "runs"
	if v.Ended != nil {
		until = "until " + v.Ended.Local().Format(time.DateTime)
	}
	fmt.Fprintf(w, "%s %s, since %s, %s\n", printable(name), printable(shortDigest(v.Digest)), v.Begun.Local().Format(time.DateTime), until)
	fmt.Fprintf(w, "CPU %s and %s to start, waited %s in %d calls, at most %s of memory\n", seconds(v.CPU), seconds(v.Boot), seconds(v.Waited), v.Waits, kib(v.Memory))
	fmt.Fprintf(w, "%d instances of %d made, %d by a start; %d resets, %d thrown away, %d ticks\n", v.Instances, v.Made, v.Booted, v.Resets, v.Discarded, v.Ticks)
	row(w, "HOOK", "CALLS", "P50", "P99", "TIME", "CPU", "EDITS", "VERDICTS", "FAILURES", "NOT ASKED")
	for _, h := range v.Hooks {
		row(w, h.Hook, h.Calls, seconds(h.P50), seconds(h.P99), seconds(h.Time), seconds(h.CPU), h.Edits, tally(h.Verdicts), tally(h.Failures), h.NotAsked)
	}
}

// tally writes counts by word, the largest first.
func tally(counts map[string]uint64) string {
	words := slices.SortedFunc(maps.Keys(counts), func(a, b string) int {
		if counts[a] != counts[b] {
			return map[bool]int{true: -1, false: 1}[counts[a] > counts[b]]
		}
		return strings.Compare(a, b)
	})
	for i, word := range words {
		words[i] = fmt.Sprintf("%s %d", word, counts[word])
	}
	if len(words) == 0 {
		return "-"
	}
	return strings.Join(words, ", ")
}
