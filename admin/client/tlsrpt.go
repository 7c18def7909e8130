package client

import (
	"context"
	"net/url"
	"strconv"

	"github.com/penstock/penstock/admin/api"
)

// tlsrpt.go: reports that others have sent about TLS.

// TLSReports returns reports about a domain, or about all if it is empty, the latest days first,
// from behind after on, at most limit; 0 is api.TLSReportListDefault. If TLSReportPage.Next is
// not empty there may be more.
func (c *Client) TLSReports(ctx context.Context, domain, after string, limit int) (api.TLSReportPage, error) {
	q := url.Values{}
	for name, value := range map[string]string{"domain": domain, "after": after} {
		if value != "" {
			q.Set(name, value)
		}
	}
	if limit > 0 {
		q.Set("limit", strconv.Itoa(limit))
	}
	var p api.TLSReportPage
	err := c.askQuery(ctx, "/v1/tlsrpt", q, &p)
	return p, err
}

// TLSReport returns a report.
func (c *Client) TLSReport(ctx context.Context, id string) (api.TLSReport, error) {
	var r api.TLSReport
	err := c.ask(ctx, "/v1/tlsrpt/"+url.PathEscape(id), &r)
	return r, err
}
