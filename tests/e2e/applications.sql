-- Rows by types for every table, one transaction each; from the second time on, changes too.
DO $do$
DECLARE
    first int := current_setting('walferry_test.first');
    t record; c record;
    tries int; n int; names text; vals text; val text; sets text; done bool; given int;
BEGIN
    FOR t IN
        SELECT r.oid, r.oid::regclass AS name FROM pg_class r JOIN pg_namespace s ON s.oid = r.relnamespace
        WHERE (r.relkind = 'r' OR r.relkind = 'p') AND NOT r.relispartition AND r.relpersistence <> 't'
            AND s.nspname !~ '^pg_' AND s.nspname NOT IN ('information_schema', 'walferry')
            AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = r.oid AND d.deptype = 'e')
        ORDER BY r.oid
    LOOP
        given := 0;
        -- All columns; those alone that need a value; both with values that CHECK constraints name.
        FOR tries IN 0..3 LOOP
            FOR n IN first..first + 2 LOOP
                names := ''; vals := '';
                FOR c IN
                    SELECT a.attname, a.atttypmod, a.attnotnull, a.atthasdef, a.attidentity,
                        CASE b.typtype WHEN 'd' THEN b.typbasetype ELSE b.oid END::regtype AS type,
                        CASE WHEN b.typtype = 'd' THEN b.typtypmod ELSE a.atttypmod END AS typmod,
                        e.typtype, e.typcategory, format_type(a.atttypid, a.atttypmod) AS declared,
                        (SELECT substring(string_agg(pg_get_constraintdef(k.oid), ' ') FROM '''([^'']+)''') FROM pg_constraint k
                         WHERE k.contype = 'c' AND (k.conrelid = t.oid AND a.attnum = ANY (k.conkey)
                            OR k.contypid = a.atttypid)) AS said
                    FROM pg_attribute a JOIN pg_type b ON b.oid = a.atttypid
                    JOIN pg_type e ON e.oid = CASE b.typtype WHEN 'd' THEN b.typbasetype ELSE b.oid END
                    WHERE a.attrelid = t.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '' AND a.attidentity <> 'a'
                    ORDER BY a.attnum
                LOOP
                    CONTINUE WHEN tries % 2 = 1 AND (NOT c.attnotnull OR c.atthasdef OR c.attidentity <> '');
                    val := CASE
                        WHEN c.typtype = 'e' THEN (SELECT quote_literal(enumlabel) FROM pg_enum WHERE enumtypid = c.type::oid ORDER BY enumsortorder LIMIT 1)
                        WHEN c.typtype IN ('r', 'm') THEN '''empty'''
                        WHEN c.typcategory = 'A' THEN '''{}'''
                        WHEN c.typtype = 'c' THEN 'NULL'
                        WHEN tries >= 2 AND c.said IS NOT NULL AND c.typcategory = 'S' THEN quote_literal(c.said)
                        WHEN c.typcategory = 'B' THEN quote_literal(n % 2 = 0)
                        WHEN c.typcategory = 'N' AND c.type::text LIKE 'reg%' THEN '0'
                        WHEN c.typcategory = 'N' THEN n::text
                        WHEN c.type::text = '"char"' THEN quote_literal(chr(65 + n % 26))
                        WHEN c.typcategory = 'S' THEN quote_literal(CASE WHEN c.typmod BETWEEN 5 AND 12
                            THEN right(lpad(n::text, 8, '0'), c.typmod - 4) ELSE 'text ' || n END)
                        WHEN c.typcategory = 'D' AND c.type::text LIKE 'time %' THEN quote_literal(make_time(n % 24, 0, 1.5))
                        WHEN c.typcategory = 'D' THEN quote_literal(date '2020-01-01' + n)
                        WHEN c.typcategory = 'T' THEN quote_literal(n || ' days')
                        WHEN c.typcategory = 'I' THEN quote_literal('10.0.0.' || n % 250)
                        WHEN c.type::text IN ('bit', 'bit varying') THEN format('(%s)::%s', n, c.declared)
                        WHEN c.type::text = 'uuid' THEN quote_literal(md5(n::text || t.name))
                        WHEN c.type::text IN ('json', 'jsonb') THEN '''{"n": ' || n || '}'''
                        WHEN c.type::text = 'xml' THEN '''<n/>'''
                        WHEN c.type::text = 'bytea' THEN quote_literal('\x0' || n % 10)
                        WHEN c.type::text LIKE 'macaddr%' THEN quote_literal('08:00:2b:01:02:03')
                        WHEN c.type::text = 'point' THEN format('''(%s,1)''', n)
                        WHEN c.type::text = 'tid' OR c.type::text LIKE '%lsn' THEN 'NULL'
                        WHEN c.type::text ~ 'geometry|geography' THEN '''POINT(1 2)'''
                        ELSE '''' || n || '''' END;
                    names := names || ', ' || quote_ident(c.attname);
                    vals := vals || ', ' || val;
                END LOOP;
                BEGIN
                    EXECUTE CASE names WHEN '' THEN format('INSERT INTO %s DEFAULT VALUES', t.name)
                        ELSE format('INSERT INTO %s (%s) OVERRIDING SYSTEM VALUE VALUES (%s)', t.name, substr(names, 3), substr(vals, 3)) END;
                    given := given + 1;
                EXCEPTION WHEN OTHERS THEN
                    RAISE DEBUG '%: %', t.name, SQLERRM;
                END;
            END LOOP;
            EXIT WHEN given > 0;
        END LOOP;
        IF first > 1 THEN
            BEGIN
                EXECUTE format('DELETE FROM %s WHERE (tableoid, ctid) = (SELECT tableoid, ctid FROM %1$s ORDER BY 1, 2 LIMIT 1)', t.name);
            EXCEPTION WHEN OTHERS THEN RAISE DEBUG '%: %', t.name, SQLERRM;
            END;
            FOR c IN
                SELECT attname FROM pg_attribute WHERE attrelid = t.oid AND attnum > 0 AND NOT attisdropped AND attgenerated = '' AND attidentity <> 'a'
            LOOP
                BEGIN
                    -- NULL where that may be, else the value of another row.
                    EXECUTE format('UPDATE %s SET %I = NULL WHERE (tableoid, ctid) = (SELECT tableoid, ctid FROM %1$s ORDER BY 1, 2 LIMIT 1)', t.name, c.attname);
                EXCEPTION WHEN OTHERS THEN
                    BEGIN
                        EXECUTE format('UPDATE %s SET %I = (SELECT max(%2$I) FROM %1$s) WHERE (tableoid, ctid) = (SELECT tableoid, ctid FROM %1$s ORDER BY 1, 2 LIMIT 1)', t.name, c.attname);
                    EXCEPTION WHEN OTHERS THEN RAISE DEBUG '%: %', t.name, SQLERRM;
                    END;
                END;
            END LOOP;
        END IF;
        COMMIT;
    END LOOP;
    -- Without triggers, nothing keeps foreign keys: rows refer to nothing, or go, where there is no parent.
    LOOP
        n := 0;
        FOR t IN
            SELECT k.conrelid::regclass AS name, k.confrelid::regclass AS parent, k.conkey, k.confkey, k.conrelid, k.confrelid
            FROM pg_constraint k WHERE k.contype = 'f' AND k.conparentid = 0
        LOOP
            SELECT string_agg(format('f.%I = r.%I', a.attname, b.attname), ' AND '), string_agg(format('f.%I IS NOT NULL', a.attname), ' AND '),
                    string_agg(format('%I = NULL', a.attname), ', ')
                INTO names, vals, sets
            FROM unnest(t.conkey, t.confkey) k(a, b) JOIN pg_attribute a ON a.attrelid = t.conrelid AND a.attnum = k.a
                JOIN pg_attribute b ON b.attrelid = t.confrelid AND b.attnum = k.b;
            val := format('%s AND NOT EXISTS (SELECT FROM %s r WHERE %s)', vals, t.parent, names);
            BEGIN
                EXECUTE format('UPDATE %s f SET %s WHERE %s', t.name, sets, val);
            EXCEPTION WHEN OTHERS THEN
                EXECUTE format('DELETE FROM %s f WHERE %s', t.name, val);
            END;
            GET DIAGNOSTICS given = ROW_COUNT;
            n := n + given;
        END LOOP;
        COMMIT;
        EXIT WHEN n = 0;
    END LOOP;
END
$do$
