package migrations

import (
	"slices"

	"github.com/jackc/pgx/v5/pgtype"
)

// Rows go over in COPY's binary form where every type of the table has one that all
// versions of Postgres share: it costs both servers less than text, which has to be
// printed and read. Other tables go over as text.

// format is what a COPY of the table's rows ends with.
func (m *mapping) format() string {
	if m.binary {
		return " (FORMAT binary)"
	}
	return ""
}

// sameBytes reports whether values of a type are sent, and read, in the same bytes by
// every version. Enums are sent as their labels. An interval is left out, because a 17
// has infinite ones that older versions take for others.
func sameBytes(oid uint32, kind string) bool {
	return kind == "e" || slices.Contains([]uint32{
		pgtype.BoolOID, pgtype.Int2OID, pgtype.Int4OID, pgtype.Int8OID, pgtype.Float4OID, pgtype.Float8OID, pgtype.NumericOID, pgtype.OIDOID,
		pgtype.TextOID, pgtype.VarcharOID, pgtype.BPCharOID, pgtype.ByteaOID, pgtype.UUIDOID, pgtype.JSONOID, pgtype.JSONBOID,
		pgtype.DateOID, pgtype.TimeOID, pgtype.TimetzOID, pgtype.TimestampOID, pgtype.TimestamptzOID, pgtype.InetOID, pgtype.CIDROID, pgtype.MacaddrOID,
		pgtype.BoolArrayOID, pgtype.Int2ArrayOID, pgtype.Int4ArrayOID, pgtype.Int8ArrayOID, pgtype.Float4ArrayOID, pgtype.Float8ArrayOID, pgtype.NumericArrayOID,
		pgtype.TextArrayOID, pgtype.VarcharArrayOID, pgtype.UUIDArrayOID, pgtype.JSONBArrayOID, pgtype.DateArrayOID, pgtype.TimestampArrayOID, pgtype.TimestamptzArrayOID, pgtype.InetArrayOID,
	}, oid)
}
