package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/penstock/penstock/admin/api"
	"github.com/penstock/penstock/admin/client"
	"github.com/penstock/penstock/internal/config"
)

// queue.go: the commands about messages that wait in a running gateway.

func newQueue() *cobra.Command {
	cmd := group(&cobra.Command{
		Use:   "queue",
		Short: "Look at the messages that wait in a running gateway, and act on them",
		Long: `Asks the gateway's admin API. Messages are named by ID, or chosen by sender, domain,
destination, state and age. What a message says is never shown: only its envelope, its
size, and what became of it.`,
		Example: `  gateway queue list --older 2h
  gateway queue why 01jq5f9k2c8v0t4m6n7p3r5s1u
  gateway queue retry --destination backend:mailstore --yes`,
	})
	cmd.AddCommand(newQueueList(), newQueueCounts(), newQueueShow(), newQueueWhy())
	for _, v := range queueVerbs() {
		cmd.AddCommand(newQueueAct(v))
	}
	return cmd
}

// queueFlags are the flags that choose messages.
type queueFlags struct {
	filter       api.QueueFilter
	states       []string
	older, newer string
}

func (q *queueFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringSliceVar(&q.states, "state", nil, "with a recipient in this `state`: waiting, held, delivered or failed")
	f.StringVar(&q.filter.Destination, "destination", "", "with a recipient at this `destination`, such as backend:mailstore")
	f.StringVar(&q.filter.Domain, "domain", "", "with a recipient of this `domain`")
	f.StringVar(&q.filter.Sender, "sender", "", "from this `address`; '<>' for reports")
	f.StringVar(&q.filter.SenderDomain, "sender-domain", "", "from this `domain`")
	f.StringVar(&q.older, "older", "", "that arrived longer ago than this `time`, such as 2h or 1d12h")
	f.StringVar(&q.newer, "newer", "", "that arrived within this `time`")
}

// read makes the filter of the flags, and tells whether they choose anything.
func (q *queueFlags) read(now time.Time) (f api.QueueFilter, any bool, err error) {
	f = q.filter
	for _, s := range q.states {
		if !slices.Contains(api.QueueStates(), api.QueueState(s)) {
			return f, false, usageError{fmt.Errorf("--state %s: there are %v", s, api.QueueStates())}
		}
		f.States = append(f.States, api.QueueState(s))
	}
	for _, age := range []struct {
		flag, text string
		into       *time.Time
	}{{"older", q.older, &f.Before}, {"newer", q.newer, &f.Since}} {
		if age.text == "" {
			continue
		}
		d, err := config.ParseDuration(age.text)
		if err != nil {
			return f, false, usageError{fmt.Errorf("--%s: %w", age.flag, err)}
		}
		*age.into = now.Add(-d)
	}
	any = len(f.States) > 0 || f.Destination != "" || f.Domain != "" || ofMessages(f)
	return f, any, nil
}

// ofMessages tells whether f has conditions that are not about recipients.
func ofMessages(f api.QueueFilter) bool {
	return f.Sender != "" || f.SenderDomain != "" || !f.Before.IsZero() || !f.Since.IsZero()
}

func newQueueList() *cobra.Command {
	var r remote
	var q queueFlags
	var after string
	var limit int
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List messages that wait",
		Long: `Lists the messages that fit all that the flags say, the oldest first. The token needs the
role read.`,
		Example: `  gateway queue list
  gateway queue list --state held
  gateway queue list --domain example.org --older 1d --limit 1000 --json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, _, err := q.read(time.Now())
			if err != nil {
				return err
			}
			if limit < 1 {
				return usageError{errors.New("--limit must be at least 1")}
			}
			c, err := r.connect()
			if err != nil {
				return err
			}
			defer c.Close()
			page, err := queuePages(cmd.Context(), c, f, after, limit)
			if err != nil {
				return err
			}
			if page.Next != "" && !r.json {
				defer fmt.Fprintf(cmd.ErrOrStderr(), "there are more: --after %s\n", printable(page.Next))
			}
			return r.print(cmd.OutOrStdout(), page, func(w io.Writer) { printQueue(w, page.Messages, time.Now()) })
		},
	}
	r.add(cmd)
	q.add(cmd)
	cmd.Flags().StringVar(&after, "after", "", "go on behind the message with this `ID`")
	cmd.Flags().IntVar(&limit, "limit", api.QueueListDefault, "how `many` at most")
	return cmd
}

// queuePages collects the pages of a list.
func queuePages(ctx context.Context, c *client.Client, f api.QueueFilter, after string, limit int) (api.QueuePage, error) {
	all := api.QueuePage{Messages: []api.QueueMessage{}}
	for {
		page, err := c.Queue(ctx, f, after, min(limit-len(all.Messages), api.QueueListMax))
		if err != nil {
			return all, err
		}
		all.Messages = append(all.Messages, page.Messages...)
		all.Next, after = page.Next, page.Next
		if after == "" || len(all.Messages) >= limit {
			return all, nil
		}
	}
}

// printQueue prints a line for each message.
func printQueue(w io.Writer, list []api.QueueMessage, now time.Time) {
	if len(list) == 0 {
		fmt.Fprintln(w, "no message waits")
		return
	}
	fmt.Fprintln(w, "ID\tAGE\tSIZE\tSTATE\tNEXT TRY\tFROM\tTO")
	for _, m := range list {
		to := "-"
		if len(m.Recipients) > 0 {
			to = m.Recipients[0].Address
		}
		if n := len(m.Recipients) - 1; n > 0 {
			to += fmt.Sprintf(" and %d more", n)
		}
		state, next := queueSummary(m, now)
		fmt.Fprintf(w, "%s\t%s\t%d\t%s\t%s\t%s\t%s\n", printable(m.ID), age(now.Sub(m.Arrived)), m.Size, printable(state), next, printable(m.Sender), printable(to))
	}
}

// queueSummary is the states of a message's recipients, and when the next is tried.
func queueSummary(m api.QueueMessage, now time.Time) (state, next string) {
	counts := map[api.QueueState]int{}
	var due time.Time
	for _, r := range m.Recipients {
		counts[r.State]++
		if r.State == api.QueueWaiting && (due.IsZero() || r.Due.Before(due)) {
			due = r.Due
		}
	}
	var words []string
	for _, st := range slices.Sorted(maps.Keys(counts)) {
		if len(counts) == 1 {
			words = append(words, string(st))
		} else {
			words = append(words, fmt.Sprintf("%d %s", counts[st], st))
		}
	}
	return strings.Join(words, ", "), dueText(due, now)
}

// dueText is how far a try is.
func dueText(due, now time.Time) string {
	switch {
	case due.IsZero():
		return "-"
	case due.After(now):
		return "in " + age(due.Sub(now))
	}
	return "now"
}

// age is a duration as a person would say it.
func age(d time.Duration) string {
	d = max(d, 0)
	switch {
	case d >= 48*time.Hour:
		return fmt.Sprintf("%dd%dh", int(d.Hours())/24, int(d.Hours())%24)
	case d >= time.Minute:
		return strings.TrimSuffix(d.Truncate(time.Minute).String(), "0s")
	}
	return d.Truncate(time.Second).String()
}

func newQueueCounts() *cobra.Command {
	var r remote
	cmd := &cobra.Command{
		Use:     "counts",
		Short:   "Count what waits",
		Long:    `Counts messages, and their recipients by state. The token needs the role read.`,
		Example: `  gateway queue counts --json`,
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return ask(cmd, &r, (*client.Client).QueueCounts, func(w io.Writer, n api.QueueCounts) {
				fmt.Fprintf(w, "messages\t%d, %d octets\n", n.Messages, n.Octets)
				for _, st := range api.QueueStates() {
					fmt.Fprintf(w, "recipients %s\t%d\n", st, n.Recipients[st])
				}
				fmt.Fprintf(w, "of them under way\t%d\n", n.UnderWay)
				if !n.Oldest.IsZero() {
					fmt.Fprintf(w, "oldest\t%s\n", age(time.Since(n.Oldest)))
				}
			})
		},
	}
	r.add(cmd)
	return cmd
}

// ask asks a question and prints the answer.
func ask[T any](cmd *cobra.Command, r *remote, question func(*client.Client, context.Context) (T, error), table func(io.Writer, T)) error {
	c, err := r.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	v, err := question(c, cmd.Context())
	if err != nil {
		return err
	}
	return r.print(cmd.OutOrStdout(), v, func(w io.Writer) { table(w, v) })
}

func newQueueShow() *cobra.Command {
	var r remote
	cmd := &cobra.Command{
		Use:     "show ID",
		Short:   "Show what is known of a message",
		Long:    `Shows the envelope, what became of each recipient, and the latest attempts. The token needs the role read.`,
		Example: `  gateway queue show 01jq5f9k2c8v0t4m6n7p3r5s1u`,
		Args:    rangeArgs(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return ask(cmd, &r, func(c *client.Client, ctx context.Context) (api.QueueMessage, error) {
				return c.QueueMessage(ctx, args[0])
			},
				func(w io.Writer, m api.QueueMessage) { printMessage(w, m, time.Now()) })
		},
	}
	r.add(cmd)
	return cmd
}

// printMessage prints a block for each kind of thing, with an empty line between them.
func printMessage(w io.Writer, m api.QueueMessage, now time.Time) {
	printEnvelope(w, m, now)
	fmt.Fprintln(w, "\nRECIPIENT\tSTATE\tNEXT TRY\tTRIES\tDESTINATION\tLAST ANSWER")
	for _, r := range m.Recipients {
		last := r.Last
		if last == "" {
			last = "-"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\t%s\n", printable(r.Address), printable(string(r.State)), dueText(r.Due, now), r.Tries, printable(r.Destination), printable(last))
	}
	printAttempts(w, m)
}

// expires tells whether a message is given up at its time: while all that is left of it is held, it
// is not.
func expires(m api.QueueMessage) bool {
	return !m.Expires.IsZero() && slices.ContainsFunc(m.Recipients, func(r api.QueueRecipient) bool { return r.State == api.QueueWaiting })
}

func printEnvelope(w io.Writer, m api.QueueMessage, now time.Time) {
	line := func(name, value string) {
		if value != "" {
			fmt.Fprintf(w, "%s\t%s\n", name, printable(value))
		}
	}
	line("ID", m.ID)
	line("arrived", fmt.Sprintf("%s, %s ago", m.Arrived.Local().Format(time.DateTime), age(now.Sub(m.Arrived))))
	if expires(m) {
		line("given up", fmt.Sprintf("%s, in %s", m.Expires.Local().Format(time.DateTime), age(m.Expires.Sub(now))))
	}
	line("from", m.Sender)
	line("size", fmt.Sprintf("%d octets", m.Size))
	if m.Priority != 0 {
		line("priority", fmt.Sprint(m.Priority))
	}
	line("client", m.Client)
	line("login", m.Login)
	line("listener", m.Listener)
	line("session", m.Session)
	line("report of", m.ReportOf)
	line("held for", m.Reason)
}

func printAttempts(w io.Writer, m api.QueueMessage) {
	if len(m.Attempts) == 0 {
		return
	}
	fmt.Fprintln(w, "\nATTEMPT\tTOOK\tDESTINATION\tHOST\tRECIPIENTS\tANSWER")
	for _, a := range m.Attempts {
		var to []string
		for _, i := range a.Recipients {
			if i >= 0 && i < len(m.Recipients) {
				to = append(to, m.Recipients[i].Address)
			}
		}
		if n := len(to) - 3; n > 0 {
			to = append(to[:3], fmt.Sprintf("%d more", n))
		}
		host := a.Host
		if host == "" {
			host = "-"
		}
		if a.Addr != "" {
			host += " [" + a.Addr + "] " + protection(a)
		}
		took := time.Duration(a.Seconds * float64(time.Second)).Round(time.Millisecond)
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", a.Time.Local().Format(time.DateTime), took, printable(a.Destination), printable(host),
			printable(strings.Join(to, ", ")), printable(a.Reply))
	}
}

// protection says in few words how the connection of an attempt was protected.
func protection(a api.QueueAttempt) string {
	switch {
	case a.TLS == "":
		return "in clear"
	case a.Verdict == "":
		return a.TLS
	}
	return a.TLS + ", " + a.Verdict
}

func newQueueWhy() *cobra.Command {
	var r remote
	cmd := &cobra.Command{
		Use:   "why ID",
		Short: "Say why a message waits",
		Long: `Says for each recipient what it waits for, what happened at each attempt, and how its
destination is. The token needs the role read.`,
		Example: `  gateway queue why 01jq5f9k2c8v0t4m6n7p3r5s1u`,
		Args:    rangeArgs(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return ask(cmd, &r, func(c *client.Client, ctx context.Context) (api.QueueExplanation, error) {
				return c.QueueWhy(ctx, args[0])
			}, printWhy)
		},
	}
	r.add(cmd)
	return cmd
}

// printWhy prints the sentences, which are no table, then the attempts and destinations.
func printWhy(w io.Writer, x api.QueueExplanation) {
	m := x.Message
	fmt.Fprintf(w, "%s from %s arrived %s ago.\n", printable(m.ID), printable(m.Sender), age(x.Now.Sub(m.Arrived)))
	for i, reason := range x.Reasons {
		if i < len(m.Recipients) {
			fmt.Fprintf(w, "%s %s.\n", printable(m.Recipients[i].Address), printable(reason.Text))
		}
	}
	if expires(m) {
		fmt.Fprintf(w, "It is given up %s (in %s).\n", m.Expires.UTC().Format("2006-01-02 15:04 MST"), age(m.Expires.Sub(x.Now)))
	}
	printAttempts(w, m)
	if len(x.Destinations) == 0 {
		return
	}
	fmt.Fprintln(w, "\nDESTINATION\tSTATE\tUNDER WAY\tWAITING")
	for _, d := range x.Destinations {
		state := "up"
		switch {
		case !d.Known:
			state = "not known"
		case d.Down && d.Error != "":
			state = "down: " + d.Error
		case d.Down:
			state = "down"
		}
		fmt.Fprintf(w, "%s\t%s\t%d of %d\t%d\n", printable(d.Name), printable(state), d.Workers, d.MaxWorkers, d.Waiting)
	}
}

// queueVerb is a command that acts.
type queueVerb struct {
	verb        api.QueueVerb
	done        string // what it has done
	short, long string
	example     string
}

func queueVerbs() []queueVerb {
	return []queueVerb{
		{api.QueueHold, "held", "Keep messages from being delivered until they are released",
			"Recipients that wait are held. A message that is being delivered at the moment is left alone.",
			`  gateway queue hold 01jq5f9k2c8v0t4m6n7p3r5s1u
  gateway queue hold --sender-domain example.net --newer 1h --yes`},
		{api.QueueRelease, "released", "Deliver messages that are held",
			"Recipients that are held are tried now, and for as long as those of a new message.",
			`  gateway queue release 01jq5f9k2c8v0t4m6n7p3r5s1u
  gateway queue release --sender-domain example.net --yes`},
		{api.QueueRetry, "made due", "Try messages now",
			"Recipients that wait for their time are tried now. Those that are held stay so.",
			`  gateway queue retry 01jq5f9k2c8v0t4m6n7p3r5s1u
  gateway queue retry --destination backend:mailstore --yes`},
		{api.QueueBounce, "bounced", "Give messages up, and tell their senders why",
			`Recipients that wait or are held are given up, and the sender gets a report with the text.
The null sender, and one who wants none, gets no report.`,
			`  gateway queue bounce --text "example.org takes no mail any more" 01jq5f9k2c8v0t4m6n7p3r5s1u
  gateway queue bounce --text "example.org takes no mail any more" --domain example.org --yes`},
		{api.QueueDrop, "dropped", "Give messages up, and tell nobody",
			"Recipients that wait or are held are given up without a report. The mail is lost.",
			`  gateway queue drop 01jq5f9k2c8v0t4m6n7p3r5s1u
  gateway queue drop --sender '<>' --older 2d --yes`},
	}
}

// queueActFlags are the flags of such a command.
type queueActFlags struct {
	remote
	queueFlags
	text  string
	all   bool
	yes   bool
	limit int
}

func newQueueAct(v queueVerb) *cobra.Command {
	var f queueActFlags
	cmd := &cobra.Command{
		Use:   string(v.verb) + " [ID...]",
		Short: v.short,
		Long: v.long + `

Messages are named by their IDs, or chosen by flags; of messages with several recipients only
those are meant that fit --state, --destination and --domain. If flags choose more than
one message, nothing is done without --yes: what would be done is told, and the exit code is
1. It is 1 too if a message could not be changed. The token needs the role operate.`,
		Example: v.example,
		Args:    rangeArgs(0, 10*api.QueueActionMax),
		RunE: func(cmd *cobra.Command, args []string) error {
			a, err := f.action(v.verb, args)
			if err != nil {
				return err
			}
			c, err := f.connect()
			if err != nil {
				return err
			}
			defer c.Close()
			return f.act(cmd, c, v, a)
		},
	}
	f.remote.add(cmd)
	f.queueFlags.add(cmd)
	cmd.Flags().BoolVar(&f.all, "all", false, "all messages there are")
	cmd.Flags().BoolVar(&f.yes, "yes", false, "also if it is more than one message")
	cmd.Flags().IntVar(&f.limit, "limit", 0, "look at this `many` messages at most")
	if v.verb == api.QueueBounce {
		cmd.Flags().StringVar(&f.text, "text", "", "what the sender is told")
	}
	return cmd
}

// action makes the action of flags and arguments.
func (f *queueActFlags) action(verb api.QueueVerb, ids []string) (api.QueueAction, error) {
	a := api.QueueAction{Verb: verb, IDs: ids, Text: f.text}
	filter, any, err := f.read(time.Now())
	switch {
	case err != nil:
		return a, err
	case len(ids) == 0 && !any && !f.all:
		return a, usageError{errors.New("name messages, choose some by flags, or say --all")}
	case f.all && (len(ids) > 0 || any):
		return a, usageError{errors.New("--all stands alone")}
	case len(ids) > 0 && ofMessages(filter):
		return a, usageError{errors.New("with IDs only --state, --destination and --domain can choose, and they choose recipients")}
	case f.limit < 0 || f.limit > 0 && len(ids) > 0:
		return a, usageError{errors.New("--limit is for flags that choose, and must not be negative")}
	case verb == api.QueueBounce && strings.TrimSpace(f.text) == "":
		return a, usageError{errors.New("say with --text what the sender is told")}
	}
	if any || f.all {
		a.Filter = &filter
	}
	return a, nil
}

// act asks first what would be done, if that may be much, and then does it.
func (f *queueActFlags) act(cmd *cobra.Command, c *client.Client, v queueVerb, a api.QueueAction) error {
	if len(a.IDs) == 0 && !f.yes {
		a.Dry = true
		would, err := f.acts(cmd.Context(), c, a)
		if err != nil {
			return err
		}
		if len(would.Messages) > 1 {
			return f.unconfirmed(cmd, c, v, would)
		}
		a.Dry = false
	}
	done, err := f.acts(cmd.Context(), c, a)
	if perr := f.print(cmd.OutOrStdout(), done, func(w io.Writer) { fmt.Fprintln(w, doneText(v, done)) }); err == nil {
		err = perr
	}
	for _, p := range done.Problems {
		fmt.Fprintf(cmd.ErrOrStderr(), "gateway: %s: %s\n", printable(p.ID), printable(p.Error.Error()))
	}
	if err == nil && len(done.Problems) > 0 {
		return errReported
	}
	return err
}

// acts sends an action in as many requests as it needs. With an error the answer tells what
// was done before.
func (f *queueActFlags) acts(ctx context.Context, c *client.Client, a api.QueueAction) (api.QueueDone, error) {
	all := api.QueueDone{Verb: a.Verb, Dry: a.Dry, Messages: []string{}}
	ids, left := a.IDs, f.limit
	for {
		a.IDs, ids = ids[:min(len(ids), api.QueueActionMax)], ids[min(len(ids), api.QueueActionMax):]
		a.Limit = min(left, api.QueueActionMax)
		done, err := c.QueueAct(ctx, a)
		if err != nil {
			return all, err
		}
		all.Messages = append(all.Messages, done.Messages...)
		all.Problems = append(all.Problems, done.Problems...)
		all.Recipients, all.Reports = all.Recipients+done.Recipients, all.Reports+done.Reports
		if left -= a.Limit; f.limit > 0 && left == 0 {
			all.Next = done.Next
			return all, nil
		}
		if a.After = done.Next; a.After == "" && len(ids) == 0 {
			return all, nil
		}
	}
}

// shownUnconfirmed is how many of the messages are shown before somebody says yes.
const shownUnconfirmed = 10

// unconfirmed tells what would be done.
func (f *queueActFlags) unconfirmed(cmd *cobra.Command, c *client.Client, v queueVerb, would api.QueueDone) error {
	var list []api.QueueMessage
	for _, id := range would.Messages[:min(len(would.Messages), shownUnconfirmed)] {
		if m, err := c.QueueMessage(cmd.Context(), id); err == nil { // it may be gone
			list = append(list, m)
		}
	}
	err := f.print(cmd.OutOrStdout(), would, func(w io.Writer) {
		printQueue(w, list, time.Now())
		if n := len(would.Messages) - len(list); n > 0 {
			fmt.Fprintf(w, "and %d more\n", n)
		}
	})
	if err != nil {
		return err
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "gateway: nothing was done; with --yes %s\n", doneText(v, would))
	return errReported
}

// doneText says what was done, or would be.
func doneText(v queueVerb, d api.QueueDone) string {
	words := v.done
	if d.Dry {
		words = "would be " + words
	}
	text := fmt.Sprintf("%s of %s %s", count(d.Recipients, "recipient"), count(len(d.Messages), "message"), words)
	if v.verb == api.QueueBounce {
		text += ", " + count(d.Reports, "report")
	}
	if d.Next != "" {
		text += "; there are more"
	}
	return text
}

// count says how many.
func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
