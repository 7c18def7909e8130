package admin

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/penstock/penstock/admin/api"
)

// tlsrpt.go: reports that others have sent about TLS.

// Reports are the reports about TLS that others have sent. Errors are as those of Filters, and
// IDs come as the client wrote them. Safe for concurrent use.
type Reports interface {
	// List calls yield with reports, the latest days first, from behind after on, until it
	// returns false.
	List(ctx context.Context, after string, yield func(api.TLSReport) bool) error
	// Show returns a report.
	Show(ctx context.Context, id string) (api.TLSReport, error)
}

// reported serves if there is something to keep reports in.
func (s *Server) reported(serve func(http.ResponseWriter, *http.Request) error) func(http.ResponseWriter, *http.Request) error {
	return func(w http.ResponseWriter, r *http.Request) error {
		if s.opts.Reports == nil {
			return fail(api.CodeConflict, "give the configuration a route with handler: tlsrpt", "no store is configured, so no report is kept here")
		}
		extend(w, quickTimeout, listTimeout)
		return serve(w, r)
	}
}

func (s *Server) reportShow(w http.ResponseWriter, r *http.Request) error {
	rep, err := s.opts.Reports.Show(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	answer(w, http.StatusOK, rep)
	return nil
}

func (s *Server) reportList(w http.ResponseWriter, r *http.Request) error {
	q, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return fail(api.CodeBadRequest, "", "the parameters of the address are broken")
	}
	domain, after, limit, err := reportsOf(q)
	if err != nil {
		return err
	}
	page := api.TLSReportPage{Reports: []api.TLSReport{}}
	size := 0
	err = s.opts.Reports.List(r.Context(), after, func(rep api.TLSReport) bool {
		if domain != "" && !slices.ContainsFunc(rep.Domains, func(d string) bool { return strings.EqualFold(d, domain) }) {
			return true
		}
		if len(page.Reports) == limit || size >= maxPage {
			page.Next = page.Reports[len(page.Reports)-1].ID
			return false
		}
		rep.Policies = nil
		page.Reports = append(page.Reports, rep)
		for _, d := range rep.Domains {
			size += len(d)
		}
		size += 2048 // of the rest, at most
		return true
	})
	if err != nil {
		return err
	}
	answer(w, http.StatusOK, page)
	return nil
}

// reportsOf reads the parameters of a list.
func reportsOf(q url.Values) (domain, after string, limit int, err error) {
	limit = api.TLSReportListDefault
	for name, values := range q {
		switch name {
		case "domain":
			domain = values[0]
		case "after":
			after = values[0]
		case "limit":
			limit, err = strconv.Atoi(values[0])
			if limit < 1 || limit > api.TLSReportListMax {
				err = errors.New("out of range")
			}
		default:
			err = errors.New("not known")
		}
		if err != nil || len(values) > 1 {
			return "", "", 0, fail(api.CodeBadRequest, "see the documentation of /v1/tlsrpt", "the parameter %q makes no sense", cut(name, 100))
		}
	}
	return domain, after, limit, nil
}
