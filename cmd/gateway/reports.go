package main

import (
	"cmp"
	"context"
	"errors"
	"log/slog"

	"github.com/penstock/penstock/admin"
	"github.com/penstock/penstock/admin/api"
	"github.com/penstock/penstock/delivery"
	"github.com/penstock/penstock/delivery/tlsrpt"
	"github.com/penstock/penstock/internal/config"
	"github.com/penstock/penstock/mail/message"
	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/store"
)

// reports.go: reports about TLS that others send us, from a route with handler: tlsrpt to the
// admin API.

// newInbox returns what takes the reports of others.
func newInbox(files store.Files, log *slog.Logger) (*tlsrpt.Inbox, error) {
	return tlsrpt.NewInbox(tlsrpt.InboxOptions{Files: foundFiles{files}, Log: log})
}

// withFields is a message with fields on top.
func withFields(fields []message.Field, content []byte) []byte {
	var b []byte
	for _, f := range fields {
		b = append(b, f.Raw()...)
	}
	return append(b, content...)
}

// handlerPrefix begins the names of backends that are handlers; no backend of a configuration
// can be called so.
const handlerPrefix = "handler:"

// handlers are the backends within the program.
func handlers(in *tlsrpt.Inbox) map[string]delivery.Handler {
	if in == nil {
		return nil
	}
	return map[string]delivery.Handler{handlerPrefix + string(config.HandlerTLSRPT): reportHandler{in}}
}

// reportHandler takes mail that is reports.
type reportHandler struct{ in *tlsrpt.Inbox }

// Begin implements delivery.Handler.
func (h reportHandler) Begin(_ context.Context, from smtp.Sender, client smtp.Forwarded) (smtp.Transaction, error) {
	tx := &reportTransaction{in: h.in, from: from.Path}
	if client.Addr.IsValid() {
		tx.client = client.Addr.String()
	}
	return tx, nil
}

// reportTransaction takes one report, for however many recipients.
type reportTransaction struct {
	in     *tlsrpt.Inbox
	from   smtp.Path
	client string
	to     int
}

// Rcpt implements smtp.Transaction.
func (tx *reportTransaction) Rcpt(context.Context, smtp.Recipient) error {
	tx.to++
	return nil
}

// Data implements smtp.Transaction. The report is safe before anybody is told so.
func (tx *reportTransaction) Data(ctx context.Context, content smtp.Content) ([]*smtp.Reply, error) {
	reply := smtp.Replyf(250, smtp.Enhanced{2, 0, 0}, "the report was taken")
	if err := tx.in.Take(ctx, content, tx.from, tx.client); err != nil {
		reply = smtp.ReplyOf(err)
	}
	replies := make([]*smtp.Reply, tx.to)
	for i := range replies {
		replies[i] = reply
	}
	return replies, nil
}

// Abort implements smtp.Transaction.
func (*reportTransaction) Abort() {}

// received shows the reports of others to the admin API, which is made before there is an inbox.
type received struct{ in func() *tlsrpt.Inbox }

var _ admin.Reports = received{}

// List implements admin.Reports.
func (r received) List(ctx context.Context, after string, yield func(api.TLSReport) bool) error {
	return r.in().List(ctx, after, func(got tlsrpt.Received) bool { return yield(reportOf(got)) })
}

// Show implements admin.Reports.
func (r received) Show(ctx context.Context, id string) (api.TLSReport, error) {
	got, err := r.in().Show(ctx, id)
	if errors.Is(err, tlsrpt.ErrNoReport) {
		return api.TLSReport{}, refused(api.CodeNotFound, "gateway tlsrpt list shows those that are there", "there is no report %s", printable(id[:min(len(id), 100)]))
	} else if err != nil {
		return api.TLSReport{}, err
	}
	return reportOf(got), nil
}

// reportOf is a report in the API's words.
func reportOf(got tlsrpt.Received) api.TLSReport {
	rep := &got.Report
	ok, failed := rep.Sessions()
	a := api.TLSReport{ID: got.ID, Received: got.Time.UTC(), Sender: cmp.Or(got.Sender, "<>"), Client: got.Client,
		Organization: rep.Organization, Contact: rep.Contact, ReportID: rep.ID, Start: rep.Range.Start.UTC(), End: rep.Range.End.UTC(),
		Domains: rep.Domains(), Successful: ok, Failed: failed}
	for _, o := range rep.Policies {
		p := api.TLSReportPolicy{Type: o.Policy.Type, Domain: o.Policy.Domain, Strings: o.Policy.Strings, MXHosts: o.Policy.MXHosts,
			Successful: int64(o.Summary.Successful), Failed: int64(o.Summary.Failed)}
		for _, f := range o.Failures {
			p.Failures = append(p.Failures, api.TLSReportFailure{Type: f.Type, Count: int64(f.Count), SendingIP: f.SendingIP,
				ReceivingHost: f.ReceivingHost, ReceivingHelo: f.ReceivingHelo, ReceivingIP: f.ReceivingIP, Reason: f.Reason, Additional: f.Additional})
		}
		a.Policies = append(a.Policies, p)
	}
	return a
}

// backendOf is the name of a route's backend.
func backendOf(r config.Route) string {
	if r.Handler != "" {
		return handlerPrefix + string(r.Handler)
	}
	return r.Backend
}
