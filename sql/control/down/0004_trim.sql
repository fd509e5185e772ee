-- Takes back 0004. A topic that was trimmed stays so; older versions trim none.
DROP TABLE millrace.trim;
DROP TABLE millrace.mark;
