package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/penstock/penstock/admin/api"
	"github.com/penstock/penstock/admin/client"
)

// tlsrpt.go: the commands about reports that others have sent us.

func newTLSRPT() *cobra.Command {
	cmd := group(&cobra.Command{
		Use:   "tlsrpt",
		Short: "Look at reports that others have sent about TLS with our hosts",
		Long: `Asks the gateway's admin API for the reports that came to a route with handler: tlsrpt
(RFC 8460). Other domains send one a day if a record asks them to:

  _smtp._tls.example.com. IN TXT "v=TLSRPTv1; rua=mailto:tlsrpt@example.com"

A report is what its sender claims. Who that is has not been checked.`,
		Example: `  gateway tlsrpt list
  gateway tlsrpt show 2026-11-26-5f2c8e0b91d3a764`,
	})
	cmd.AddCommand(newTLSRPTList(), newTLSRPTShow())
	return cmd
}

func newTLSRPTList() *cobra.Command {
	var r remote
	var domain, after string
	var limit int
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List reports, the latest days first",
		Long:  `Lists the reports that came, the latest days first. The token needs the role read.`,
		Example: `  gateway tlsrpt list
  gateway tlsrpt list --domain example.com --limit 1000 --json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if limit < 1 {
				return usageError{errors.New("--limit must be at least 1")}
			}
			c, err := r.connect()
			if err != nil {
				return err
			}
			defer c.Close()
			page, err := reportPages(cmd.Context(), c, domain, after, limit)
			if err != nil {
				return err
			}
			if page.Next != "" && !r.json {
				defer fmt.Fprintf(cmd.ErrOrStderr(), "there are more: --after %s\n", printable(page.Next))
			}
			return r.print(cmd.OutOrStdout(), page, func(w io.Writer) { printReports(w, page.Reports) })
		},
	}
	r.add(cmd)
	cmd.Flags().StringVar(&domain, "domain", "", "about this `domain`")
	cmd.Flags().StringVar(&after, "after", "", "go on behind the report with this `ID`")
	cmd.Flags().IntVar(&limit, "limit", api.TLSReportListDefault, "how `many` at most")
	return cmd
}

// reportPages collects the pages of a list.
func reportPages(ctx context.Context, c *client.Client, domain, after string, limit int) (api.TLSReportPage, error) {
	all := api.TLSReportPage{Reports: []api.TLSReport{}}
	for {
		page, err := c.TLSReports(ctx, domain, after, min(limit-len(all.Reports), api.TLSReportListMax))
		if err != nil {
			return all, err
		}
		all.Reports = append(all.Reports, page.Reports...)
		all.Next, after = page.Next, page.Next
		if after == "" || len(all.Reports) >= limit {
			return all, nil
		}
	}
}

// printReports prints a line for each report.
func printReports(w io.Writer, list []api.TLSReport) {
	if len(list) == 0 {
		fmt.Fprintln(w, "there are no reports")
		return
	}
	fmt.Fprintln(w, "ID\tABOUT\tFROM\tGOOD\tFAILED\tDOMAIN")
	for _, r := range list {
		domains := "-"
		if len(r.Domains) > 0 {
			domains = r.Domains[0]
		}
		if n := len(r.Domains) - 1; n > 0 {
			domains += fmt.Sprintf(" and %d more", n)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%d\t%s\n", printable(r.ID), dateText(r.Start), printable(cmp.Or(r.Organization, r.Sender)), r.Successful, r.Failed, printable(domains))
	}
}

func dateText(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format(time.DateOnly)
}

func newTLSRPTShow() *cobra.Command {
	var r remote
	cmd := &cobra.Command{
		Use:     "show ID",
		Short:   "Show a report",
		Long:    `Shows how TLS went by each policy, and what was wrong. The token needs the role read.`,
		Example: `  gateway tlsrpt show 2026-11-26-5f2c8e0b91d3a764`,
		Args:    rangeArgs(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return ask(cmd, &r, func(c *client.Client, ctx context.Context) (api.TLSReport, error) { return c.TLSReport(ctx, args[0]) }, printReport)
		},
	}
	r.add(cmd)
	return cmd
}

// printReport prints a block for each policy.
func printReport(w io.Writer, r api.TLSReport) {
	line := func(name, value string) {
		if value != "" {
			fmt.Fprintf(w, "%s\t%s\n", name, printable(value))
		}
	}
	line("ID", r.ID)
	line("came", r.Received.Local().Format(time.DateTime))
	line("sender", strings.TrimSpace(r.Sender+" "+r.Client))
	line("organization", r.Organization)
	line("contact", r.Contact)
	line("report", r.ReportID)
	if !r.Start.IsZero() {
		line("about", r.Start.UTC().Format(time.DateTime)+" to "+r.End.UTC().Format(time.DateTime)+" UTC")
	}
	for _, p := range r.Policies {
		fmt.Fprintln(w)
		line("policy", p.Type+" of "+p.Domain)
		for _, s := range p.Strings {
			line("", s)
		}
		line("hosts", strings.Join(p.MXHosts, " "))
		line("sessions", fmt.Sprintf("%d good, %d failed", p.Successful, p.Failed))
		if len(p.Failures) == 0 {
			continue
		}
		fmt.Fprintln(w, "\nFAILED\tTYPE\tHOST\tADDRESS\tFROM\tREASON")
		for _, f := range p.Failures {
			why := strings.TrimSpace(f.Reason + " " + f.Additional)
			fmt.Fprintf(w, "%d", f.Count)
			for _, s := range []string{f.Type, cmp.Or(f.ReceivingHost, f.ReceivingHelo), f.ReceivingIP, f.SendingIP, why} {
				fmt.Fprintf(w, "\t%s", printable(cmp.Or(s, "-")))
			}
			fmt.Fprintln(w)
		}
	}
}
